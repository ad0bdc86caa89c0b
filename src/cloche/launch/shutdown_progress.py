"""What a stopping worker still runs, told to its supervisor.

During a warm shutdown a worker answers no ``inspect`` any more, so it tells by itself, in
the way it says that it is ready (sd_notify, a key of our own).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from celery import signals
from celery.worker import state

from cloche.process.systemd import notify

_INTERVAL = 0.5
#: Tasks told of at once: a datagram holds so many.
_MAX_TASKS = 20


def tell_what_still_runs() -> None:
    """From the moment this worker begins to stop, say twice a second which tasks still run."""

    begun: list[bool] = []

    def stopping(**_: Any) -> None:
        if begun:  # a further signal, perhaps in the middle of the first one's handler
            return
        begun.append(True)
        threading.Thread(target=_tell, name="last words", daemon=True).start()

    signals.worker_shutting_down.connect(stopping, weak=False, dispatch_uid="cloche-last-words")


def _tell() -> None:
    while notify(f"X_TASKS={json.dumps(list(_running()))}"):
        time.sleep(_INTERVAL)


def _running() -> Iterator[dict[str, Any]]:
    # A copy at one go: the worker's own thread changes the set (a WeakSet).
    for request in tuple(state.active_requests)[:_MAX_TASKS]:
        yield {"name": request.name, "id": request.id, "since": request.time_start}
