"""One run of one coroutine task: its drive, and who has decided how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from cloche.aio.driving import Drive

#: Fates, see :meth:`Run.settle`. Only the first one to be claimed counts.
OUTCOME, REVOKED, TIMEOUT, STOPPED = "outcome", "revoked", "timeout", "stopped"

_lock = threading.Lock()


class Run:
    """What others need of a run: to throw into it, and to decide its fate before it does."""

    __slots__ = ("__weakref__", "_drive", "_early", "fate", "on_over", "softened", "task")

    def __init__(self) -> None:
        self._drive: Drive | None = None
        self._early: BaseException | None = None
        #: None until something is certain: the body's outcome, a revoke, the hard limit.
        self.fate: str | None = None
        #: Whether the soft limit was raised in the body.
        self.softened = False
        #: The asyncio task it runs in, where somebody has told.
        self.task: asyncio.Task[Any] | None = None
        #: Called once the body is over and its result on its way, where somebody wants to know.
        self.on_over: Callable[[], object] | None = None

    def settle(self, fate: str) -> bool:
        """Claim how this run ends. False if that is certain already. From any thread."""
        with _lock:
            if self.fate is not None:
                return False
            self.fate = fate
            return True

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Drive:
        """The body, ready to be awaited; what was thrown too early meets it there."""
        self._drive = Drive(coroutine, self.task)
        if self._early is not None:
            self._drive.throw(self._early)
        return self._drive

    def throw(self, exc: BaseException) -> None:
        """Raise ``exc`` in the body, now or when it begins. Only in the loop's thread."""
        if self._drive is None:
            self._early = exc
        else:
            self._drive.throw(exc)

    def soften(self) -> None:
        """Raise the soft limit in the body, once. Only in the loop's thread."""
        if not self.softened:
            self.softened = True
            self.throw(SoftTimeLimitExceeded())

    @property
    def cancelled(self) -> bool:
        """Whether somebody wished the body to be cancelled."""
        return self._drive is not None and self._drive.cancelled
