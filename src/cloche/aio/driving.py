"""Running a coroutine step by step, so that others may raise exceptions inside it.

``asyncio`` can only cancel. A time limit has to raise ``SoftTimeLimitExceeded`` *in* the
body, whose clean-up may await and may even return a value, so the body is driven by hand:
cancel the asyncio task (which also cancels whatever the body waits for), intercept the
``CancelledError`` before the body sees it, take the cancellation back, and raise the wanted
exception at the body's current ``await`` instead.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from celery import Task
from celery.exceptions import SoftTimeLimitExceeded

from cloche.errors import TaskCancelledError

#: The classes of :func:`_as_cancellation`, made when first needed.
_kinds: dict[type[BaseException], type[BaseException] | None] = {}

#: How a run ends, see :meth:`CoroutineRun.decide`. Only the first one to be claimed counts.
FINISHED, REVOKED, TIMEOUT, STOPPED = "outcome", "revoked", "timeout", "stopped"

_lock = threading.Lock()


class Drive:
    """One run of one coroutine, inside one asyncio task.

    ``await drive`` (or ``await drive.run()``) gives the coroutine's value or raises what it
    raised. A ``CancelledError`` out of it while :attr:`cancelled` is false was nobody's
    wish: the body awaited something that had been cancelled, and has failed by itself.
    """

    __slots__ = ("_asked", "_pending", "_task", "coroutine", "done", "thrown")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], task: asyncio.Task[Any] | None = None
    ) -> None:
        self.coroutine = coroutine
        #: The last exception that was thrown in, as it was given to :meth:`throw`.
        self.thrown: BaseException | None = None
        self.done = False
        self._task = task
        self._pending: BaseException | None = None
        self._asked = 0

    async def run(self) -> Any:
        """The coroutine's outcome; for ``create_task(drive.run())``."""
        return await self

    @property
    def cancelled(self) -> bool:
        """Whether somebody wished this run to end by cancellation."""
        if isinstance(self.thrown, asyncio.CancelledError):
            return True
        return self._task is not None and self._task.cancelling() > 0

    def throw(self, exc: BaseException) -> bool:
        """Raise ``exc`` at the body's current await; false if the body has ended.

        Only in the loop's thread. Of several thrown before the body runs again it sees
        the last one.
        """
        if self.done:
            return False
        self.thrown = exc
        self._pending = _as_cancellation(exc)
        if self._task is not None and not getattr(self.coroutine, "cr_running", False):
            self._asked += 1
            self._task.cancel()
        return True

    def throw_soon(self, loop: asyncio.AbstractEventLoop, exc: BaseException) -> None:
        """As :meth:`throw`, from any thread."""
        loop.call_soon_threadsafe(self.throw, exc)

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._task is None:
            self._task = asyncio.current_task()
        coroutine = self.coroutine
        send = coroutine.send
        try:
            if self._pending is not None:
                raise self._take()
            awaited = send(None)
            while True:
                try:
                    value = None if self._pending is not None else (yield awaited)
                except BaseException as error:  # noqa: BLE001 (handed to the body)
                    awaited = coroutine.throw(error if self._pending is None else self._take())
                else:
                    if self._pending is None:
                        awaited = send(value)
                    else:
                        awaited = coroutine.throw(self._take())  # type: ignore[unreachable]
        except StopIteration as stop:
            return stop.value
        except BaseException as error:
            original = getattr(error, "cloche_thrown", None)
            if original is None:
                raise
            raise original.with_traceback(error.__traceback__) from None
        finally:
            self.done = True
            self._take_back()
            coroutine.close()

    def _take(self) -> BaseException:
        """What is to be raised in the body now; the cancellation that woke it is taken back."""
        pending, self._pending = self._pending, None
        self._take_back()
        return pending or asyncio.CancelledError()

    def _take_back(self) -> None:
        while self._asked and self._task is not None:
            self._asked -= 1
            self._task.uncancel()


def _as_cancellation(exc: BaseException) -> BaseException:
    """``exc`` as an exception that is also a ``CancelledError``.

    Task groups, ``wait_for`` and most libraries tidy up on ``CancelledError`` only: given a
    bare ``SoftTimeLimitExceeded`` they would leave their own tasks running behind.
    """
    if isinstance(exc, asyncio.CancelledError):
        return exc
    kind = _cancelling(type(exc))
    if kind is None:
        return exc
    both: BaseException = kind.__new__(kind, *exc.args)
    both.args = exc.args
    both.__dict__.update(exc.__dict__, cloche_thrown=exc)
    return both


def _cancelling(kind: type[BaseException]) -> type[BaseException] | None:
    if kind not in _kinds:
        bases = (kind, asyncio.CancelledError)
        try:
            _kinds[kind] = type(kind.__name__, bases, {"__module__": kind.__module__})
        except TypeError:  # a layout or a base that cannot be combined
            _kinds[kind] = None
    return _kinds[kind]


class CoroutineRun:
    """What others need of a run: to throw into it, and to decide how it ends before it does."""

    __slots__ = (
        "__weakref__",
        "_drive",
        "_early",
        "nested",
        "on_over",
        "outcome",
        "softened",
        "task",
        "writers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._drive: Drive | None = None
        self._early: BaseException | None = None
        #: None until something is certain: the body's outcome, a revoke, the hard limit.
        self.outcome: str | None = None
        #: Whether the soft limit was raised in the body.
        self.softened = False
        #: The asyncio task it runs in, where somebody has told.
        self.task: asyncio.Task[Any] | None = None
        #: The task whose ``run``, called by Celery's tracer, waits for the body here.
        self.nested: Task | None = None
        #: The threads that store for it, where Celery's tracer runs it.
        self.writers: Any = None
        #: Called once the body is over and its result on its way, where somebody wants to know.
        self.on_over: Callable[[], object] | None = None

    def decide(self, outcome: str) -> bool:
        """Claim how this run ends. False if that is certain already. From any thread."""
        with _lock:
            if self.outcome is not None:
                return False
            self.outcome = outcome
            return True

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Drive:
        """The body, ready to be awaited; what was thrown too early meets it there."""
        self._drive = Drive(coroutine, self.task)
        if self._early is not None:
            self._drive.throw(self._early)
        return self._drive

    @property
    def in_body(self) -> bool:
        """Whether the body of a task that was :attr:`nested` has begun and not ended."""
        return self.nested is None and self.outcome is None

    async def body(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the body of :attr:`nested` returns or raises.

        CancelledError if the run has ended otherwise: Celery's tracer lets it pass, stores nothing.
        """
        task, self.nested = self.nested, None
        try:
            value = await self.drive(coroutine)
        except asyncio.CancelledError as error:
            if (self.cancelled and self.decide(STOPPED)) or not self.decide(FINISHED):
                raise
            raise stray_cancellation(task, error) from error
        except BaseException:
            if not self.decide(FINISHED):
                raise asyncio.CancelledError(self.outcome) from None
            raise
        if not self.decide(FINISHED):
            raise asyncio.CancelledError(self.outcome)
        return value

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


def stray_cancellation(task: Task, exc: BaseException) -> TaskCancelledError:
    """A cancellation that nobody asked for, as the failure of this one task."""
    failure = TaskCancelledError(
        f"the body of {task.name} ended with CancelledError",
        why="what it awaited was cancelled",
    )
    failure.__cause__ = exc
    return failure.with_traceback(exc.__traceback__)
