"""Calls that must happen in the consumer's thread: acks, events, Celery's request state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from celery.utils.log import get_logger
from kombu.asynchronous import Hub

logger = get_logger("cloche.aio")

_Call = tuple[Callable[..., object], tuple[Any, ...]]


class ConsumerCalls:
    """A queue of calls, woken through a pipe in the kombu hub, or served by a thread.

    Its own pipe instead of ``hub.call_soon``: that takes a lock, and the consumer's thread
    may be stopped by a signal handler while it holds it.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._poked = False
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)
        self._hub: Any = None
        self._thread: Thread | None = None

    def put(self, function: Callable[..., object], *args: Any) -> None:
        """Have ``function(*args)`` called in the consumer's thread. From any thread."""
        self._calls.put((function, args))
        if self._hub is not None and not self._poked:
            self._poked = True
            with contextlib.suppress(OSError):  # full: it is awake; closed: nobody listens
                os.write(self._writes, b"x")

    def register(self, hub: Hub) -> None:
        """Be woken by ``hub``; again after each reset of it."""
        self._hub = hub
        hub.add_reader(self._reads, self._woken)
        self.drain()

    def serve(self) -> None:
        """Without a hub: call from a thread of our own."""
        self._thread = Thread(target=self._serve, name="cloche-outbox", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Make all calls that wait."""
        self._poked = False
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            if call is not None:
                self._make(call)

    def wait(self, seconds: float) -> None:
        """Make the next call, waiting for it up to ``seconds``, and those behind it."""
        with contextlib.suppress(Empty):
            call = self._calls.get(timeout=seconds)
            if call is not None:
                self._make(call)
        self.drain()

    def close(self) -> None:
        hub, self._hub = self._hub, None
        if hub is not None:
            with contextlib.suppress(Exception):  # the hub may have been closed
                hub.remove(self._reads)
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(5)
        os.close(self._reads)
        os.close(self._writes)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reads, 4096)
        self.drain()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            self._make(call)

    def _make(self, call: _Call) -> None:
        function, args = call
        try:
            function(*args)
        except Exception:
            logger.exception("the pool goes on after an error in %r", function)
