"""Whether the things a cluster stands on answer: each check timed and bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from celery import Celery
from celery.backends.base import DisabledBackend, KeyValueStoreBackend
from kombu import Connection
from kombu.utils.uuid import uuid

from cloche.records import Health
from cloche.settings import mask_url

#: Returns one line of detail, raises when the thing does not work.
Check = Callable[[], str]


class Checks:
    """Named checks that run side by side, none waited for longer than ``timeout`` seconds.

    Callers in several threads take turns. A check that hangs is reported and left alone: it
    is not started again until it ends.
    """

    def __init__(self, checks: Mapping[str, Check], timeout: float = 3.0) -> None:
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


def _checked(name: str, check: Check) -> Health:
    began = time.perf_counter()
    try:
        detail, ok = check(), True
    except Exception as error:  # noqa: BLE001 (a check may fail in any way; that is the verdict)
        detail, ok = one_line(error), False
    return Health(name, ok, detail, time.perf_counter() - began)


def one_line(error: BaseException) -> str:
    """An error in one line without the password of a URL in it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(mask_url(word) if "://" in word else word for word in lines[0].split())


def check_broker(connect: Callable[[], Connection]) -> str:
    """Open a fresh connection and, where the transport can, PING."""
    with connect() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        with connection.channel() as channel:
            client = getattr(channel, "client", None)
            if client is not None and hasattr(client, "ping"):
                client.ping()
        return mask_url(connection.as_uri(include_password=True))


def check_results(app: Celery) -> str:
    """Read a result that is not there."""
    backend = app.backend
    if isinstance(backend, DisabledBackend):
        return "results are not kept (no result backend is set)"
    if isinstance(backend, KeyValueStoreBackend):
        backend.get(backend.get_key_for_task(uuid()))
    else:
        backend._get_task_meta_for(uuid())
    return mask_url(backend.as_uri(include_password=True))
