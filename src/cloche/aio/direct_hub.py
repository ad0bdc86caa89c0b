"""Calls from the pool's loop into the thread of Celery's consumer."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

logger = get_logger("cloche.aio")


class HubCalls:
    """``call`` from any thread; what is called runs in the hub's next turn, in order."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._todo: deque[Callable[[], object]] = deque()
        self._ours, self._theirs = socket.socketpair()
        for end in (self._ours, self._theirs):
            end.setblocking(False)
        self._rung = False
        hub.add_reader(self._theirs, self.run)

    def call(self, function: Callable[[], object]) -> None:
        """Have it called."""
        self._todo.append(function)
        if not self._rung:
            self._rung = True
            with contextlib.suppress(BlockingIOError, OSError):
                self._ours.send(b"\0")

    def run(self) -> None:
        """In the hub's thread: call what waits."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._theirs.recv(4096)
        self._rung = False
        while self._todo:
            function = self._todo.popleft()
            try:
                function()
            except Exception:
                logger.exception("a call into the consumer's thread failed")

    def close(self) -> None:
        """Call what waits, then no more. In the hub's thread."""
        self.run()
        with contextlib.suppress(Exception):
            self._hub.remove(self._theirs)
        self._ours.close()
        self._theirs.close()
