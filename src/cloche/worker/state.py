"""Celery's sets of requests, made safe to look at while the pool's loop changes them.

``inspect active`` and the like walk them in the consumer's thread. A weak set tells a walk
of its own thread from changes, not one of another: "Set changed size during iteration".
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from heapq import heappush
from time import monotonic
from typing import Any

from celery.utils.collections import LimitedSet
from celery.worker import state


class SnapshotSet(weakref.WeakSet[Any]):
    """A weak set whose walks see the moment they began."""

    data: set[weakref.ref[Any]]

    def __iter__(self) -> Iterator[Any]:
        # Copying a set of references is one step for all other threads.
        for reference in self.data.copy():
            found = reference()
            if found is not None:
                yield found


class RecentSet(LimitedSet):
    """Celery's set of recently finished tasks, which drops the oldest in bulk.

    Celery's own looks for old ones at each addition once it is full.
    """

    def add(self, item: Any, now: float | None = None) -> None:
        """As Celery's."""
        data = self._data
        if item in data or now is not None:
            super().add(item, now)
            return
        entry = (monotonic(), next(self._seq), item)
        data[item] = entry
        heappush(self._heap, entry)
        if len(data) >= self.maxlen + SLACK:
            self.purge()


#: More than Celery's limit that is kept before the oldest are dropped.
SLACK = 200


def make_walkable() -> None:
    """Have Celery's sets walk over snapshots, in this process."""
    for found in (state.reserved_requests, state.active_requests, state.scheduled_requests):
        found.__class__ = SnapshotSet
    state.successful_requests.__class__ = RecentSet


def forget(request: Any) -> None:
    """``celery.worker.state.task_ready(request, successful=True)``, with one reference for all."""
    state.successful_requests.add(request.id)
    state.requests.pop(request.id, None)
    reference = weakref.ref(request)
    state.active_requests.data.discard(reference)
    state.reserved_requests.data.discard(reference)
    state.scheduled_requests.data.discard(reference)


def collect_less(jobs: int) -> None:
    """Let the garbage collector pass over what is there when the worker is ready.

    Applications and libraries are hundreds of thousands of objects that live as long as the
    worker; every full collection walks them all. Nor should ``jobs`` that begin at once make it
    look: all they made is in use. A threshold somebody has set stays.
    """
    gc.collect()
    gc.freeze()
    threshold = min(max(jobs, LEAST_JOBS), MOST_JOBS) * OBJECTS
    if gc.get_threshold()[0] < threshold:
        gc.set_threshold(threshold, 20, 20)


#: Objects the collector counts, of a job that runs: at most (measured: see decision 0025).
OBJECTS = 150

#: Jobs at once that the threshold is made for (CPython's is 700 objects).
LEAST_JOBS, MOST_JOBS = 100, 1000
