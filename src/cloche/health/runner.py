"""Checks that may hang, run side by side: each timed and bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from cloche.health.answers import one_line
from cloche.records import Health

#: Returns one line of detail, raises when the thing does not work.
Ask = Callable[[], str]


class Runner:
    """Named checks that run side by side, none waited for longer than ``timeout`` seconds.

    Callers in several threads take turns. A check that hangs is reported and left alone: it
    is not started again until it ends.
    """

    def __init__(self, checks: Mapping[str, Ask], timeout: float = 3.0) -> None:
        self._checks = dict(checks)
        self._timeout = timeout
        self._pool = ThreadPoolExecutor(max(1, len(checks)), thread_name_prefix="health")
        self._lock = threading.Lock()
        self._running: dict[str, tuple[float, Future[Health]]] = {}

    def run(self) -> tuple[Health, ...]:
        """The verdict on each check, in the order they were given."""
        with self._lock:
            for name, check in self._checks.items():
                if name not in self._running:
                    future = self._pool.submit(_checked, name, check)
                    self._running[name] = (time.monotonic(), future)
            wait_for([future for _, future in self._running.values()], self._timeout)
            return tuple(self._verdict(name) for name in self._checks)

    def _verdict(self, name: str) -> Health:
        began, future = self._running[name]
        if not future.done():
            took = time.monotonic() - began
            return Health(name, False, f"no answer for {took:.0f} s", took)
        del self._running[name]
        return future.result()

    def stop(self) -> None:
        """Start no further check; one that hangs is left to its own time-out."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _checked(name: str, check: Ask) -> Health:
    began = time.perf_counter()
    try:
        detail, ok = check(), True
    except Exception as error:  # noqa: BLE001 (a check may fail in any way; that is the verdict)
        detail, ok = one_line(error), False
    return Health(name, ok, detail, time.perf_counter() - began)
