"""Threads for plain tasks: kept for reuse, as each has result backend connections of its own.

Daemons, unlike those of ``ThreadPoolExecutor``: a task that hangs in a C call must not keep the
worker from ending once its time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded


class Crew:
    """As many threads as there were calls at a time; who calls bounds that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._todo: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]
        self._todo = SimpleQueue()
        self._threads = self._idle = 0
        self._lock = RLock()  # a signal handler may submit while its thread submits

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Have ``function(*args)`` called in a thread of the crew. It raises nothing."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                name = f"{self._name}-{self._threads}"
                self._threads += 1
                Thread(target=self._work, name=name, daemon=True).start()
        self._todo.put((function, args))

    def stop(self) -> None:
        """Let idle threads end, and busy ones when they are done. Waits for none."""
        for _ in range(self._threads):
            self._todo.put(None)

    def _work(self) -> None:
        while True:
            try:
                if (call := self._todo.get()) is None:
                    return
                function, args = call
                function(*args)
                del call, function, args
            except (SoftTimeLimitExceeded, asyncio.CancelledError):
                pass  # a limit raised in this thread that came when its task had just ended
            with self._lock:
                self._idle += 1
