"""One step of a run: logged when it begins and ends, with its duration, tried again if asked."""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from cloche.backoff import Backoff
from cloche.errors import WorkflowError
from cloche.logs.context import Scope, bound, within
from cloche.logs.record import Level, RecordSink

P = ParamSpec("P")
T = TypeVar("T")

#: Not failures of a step: Celery's own ways out of a task, and its time limit.
WAYS_OUT: tuple[type[BaseException], ...] = (Retry, Ignore, Reject)
_FINAL = (*WAYS_OUT, SoftTimeLimitExceeded)


class Step:
    """A step: a block (``with``, ``async with``), a decorated function, or ``await execute()``.

    ``retries`` further tries after an exception of ``retry_on``, ``delay`` seconds (or a
    `Backoff`) apart. A block cannot be run again, so it takes no retries. Names within a step
    around it: the step ``draft`` inside ``write`` is logged as ``write/draft``.
    """

    def __init__(
        self,
        logger: RecordSink,
        name: str,
        *,
        retries: int = 0,
        delay: float | Backoff = 1.0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        **fields: str | None,
    ) -> None:
        if retries < 0:
            raise WorkflowError(f"The step {name} asks for {retries} retries.")
        self.name = name
        self._logger = logger
        self._retries = retries
        self._delay = delay if isinstance(delay, Backoff) else Backoff(delay, 1.0, delay)
        self._retry_on = retry_on
        self._fields = fields
        self._block: AbstractContextManager[object] | None = None

    # A block

    def __enter__(self) -> Self:
        if self._retries:
            raise WorkflowError(
                f"The block of step {self.name} cannot be tried again.",
                why="A with statement runs its block once.",
                fix="Decorate a function with the step, or await its execute(function, …).",
            )
        if self._block is not None:
            raise WorkflowError(f"The block of step {self.name} is entered already.")
        self._block = self._attempt(1)
        self._block.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        leaving, self._block = self._block, None
        if leaving is not None:
            leaving.__exit__(kind, error, trace)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    # A function

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """``function`` as this step, each time it is called; an ``async def`` stays one."""
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self.execute(function, *args, **kwargs)

            return cast(Callable[P, T], awaited)

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.call(function, *args, **kwargs)

        return called

    async def execute(
        self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await ``function(*args, **kwargs)`` as this step; its result."""
        for attempt in self._attempts():
            try:
                with self._attempt(attempt):
                    return await function(*args, **kwargs)
            except self._retry_on as error:
                if not self._again(attempt, error):
                    raise
            await asyncio.sleep(self._delay.delay(attempt))
        raise AssertionError  # the last attempt returns or raises

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a function that is not a coroutine; it sleeps between tries."""
        for attempt in self._attempts():
            try:
                with self._attempt(attempt):
                    return function(*args, **kwargs)
            except self._retry_on as error:
                if not self._again(attempt, error):
                    raise
            time.sleep(self._delay.delay(attempt))
        raise AssertionError

    def _attempts(self) -> Iterator[int]:
        return iter(range(1, self._retries + 2))

    def _again(self, attempt: int, error: BaseException) -> bool:
        return attempt <= self._retries and not isinstance(error, _FINAL)

    @contextmanager
    def _attempt(self, attempt: int) -> Iterator[None]:
        """One try, logged. What is raised inside goes on."""
        inner = within(step=self.name, **self._fields)
        began = time.monotonic()
        with bound(inner):
            self._write("debug", inner, f"{self.name} started", status="started", attempt=attempt)
            try:
                yield
            except BaseException as error:
                self._failed(inner, attempt, error, _ms(began))
                raise
            message = f"{self.name} done" + (f" at attempt {attempt}" if attempt > 1 else "")
            self._write(
                "info", inner, message, duration_ms=_ms(began), status="done", attempt=attempt
            )

    def _failed(self, inner: Scope, attempt: int, error: BaseException, took: float) -> None:
        level: Level = "info"
        details: dict[str, Any] = {}
        said = f"{self.name} failed: {one_line(error)}"
        if isinstance(error, WAYS_OUT):
            status, said = "left", f"{self.name} left: {one_line(error)}"
        elif not isinstance(error, Exception):
            level, status = "warning", "cancelled"
            said = f"{self.name} cancelled: {type(error).__name__}"
        elif isinstance(error, self._retry_on) and self._again(attempt, error):
            level, status, details = "warning", "retry", described(error)
            said = f"{self.name} failed, attempt {attempt} of {self._retries + 1}: "
            said += one_line(error)
        elif told(error):
            level, status = "warning", "failed"
        else:
            level, status, details = "error", "failed", described(error)
        self._write(level, inner, said, duration_ms=took, status=status, attempt=attempt, **details)

    def _write(
        self,
        level: Level,
        inner: Scope,
        message: str,
        *,
        duration_ms: float | None = None,
        **details: Any,
    ) -> None:
        self._logger.log(
            level,
            inner.category or "workflow",
            inner.step,
            message,
            details=details,
            duration_ms=duration_ms,
        )


def told(error: BaseException) -> bool:
    """Whether a step inside has logged this very exception as its error; marks it as logged."""
    before = getattr(error, "__cloche_told__", False)
    try:
        error.__cloche_told__ = True  # type: ignore[attr-defined]
    except AttributeError:  # an exception with slots: it is told once more
        return False
    return bool(before)


def described(error: BaseException) -> dict[str, Any]:
    """An exception as details of a record: its type, its text, its traceback."""
    lines = traceback.format_exception(error)
    return {
        "exception": type(error).__name__,
        "error": str(error),
        "traceback": "".join(lines)[-_LONGEST:],
    }


#: Characters of a traceback that are kept: its end says what happened.
_LONGEST = 16_000


def one_line(error: BaseException) -> str:
    """``ValueError: what it says``, its first line."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _ms(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 3)
