"""Celery's sets of requests, made safe to look at while the pool's loop changes them.

``inspect active`` and the like walk them in the consumer's thread. A weak set tells a walk
of its own thread from changes, not one of another: "Set changed size during iteration".
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from celery.worker import state


class SnapshotSet(weakref.WeakSet[Any]):
    """A weak set whose walks see the moment they began."""

    def __iter__(self) -> Iterator[Any]:
        # Copying a set of references is one step for all other threads.
        for reference in self.data.copy():  # type: ignore[attr-defined]
            found = reference()
            if found is not None:
                yield found


def make_walkable() -> None:
    """Have Celery's sets walk over snapshots, in this process."""
    for found in (state.reserved_requests, state.active_requests, state.scheduled_requests):
        found.__class__ = SnapshotSet
