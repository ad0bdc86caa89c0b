"""A workflow run as a block: its status, its records, and who is told."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar

from cloche.backoff import Backoff
from cloche.errors import WorkflowError
from cloche.logs.context import bound, within
from cloche.logs.record import Level, RecordSink
from cloche.logs.step import WAYS_OUT, Step, described, one_line, told

P = ParamSpec("P")
T = TypeVar("T")


class RunStatus(StrEnum):
    """Where a run is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: Celery was asked to run its task once more, or somebody else will go on.
    LEFT = "left"


Callback: TypeAlias = Callable[["WorkflowRun"], object]
Callbacks: TypeAlias = Callback | Iterable[Callback]


class WorkflowRun:
    """``with logger.run("r1") as run:`` or ``async with``.

    At its beginning, its end and its failure, in this order: the status is set, a record is
    written, the callbacks are called with the run (in an ``async with`` they may be coroutine
    functions). ``after`` means success; a run that is cancelled counts as failed here. A callback
    that fails is logged and changes nothing. Inside, everything that is
    logged belongs to the run, and to the Celery task around it.
    """

    def __init__(
        self,
        logger: RecordSink,
        run_id: str | None = None,
        *,
        name: str = "run",
        before: Callbacks = (),
        after: Callbacks = (),
        on_error: Callbacks = (),
        **fields: str | None,
    ) -> None:
        self.run_id = run_id or uuid.uuid4().hex
        self.name = name
        self.status = RunStatus.PENDING
        self.error: BaseException | None = None
        #: Milliseconds from beginning to end; None until then.
        self.duration_ms: float | None = None
        self._logger = logger
        self._fields = fields
        self._callbacks = {
            RunStatus.RUNNING: _several(before),
            RunStatus.SUCCEEDED: _several(after),
            RunStatus.FAILED: _several(on_error),
            RunStatus.CANCELLED: _several(on_error),
        }
        self._began = 0.0
        self._scope: Any = None

    # What is inside

    def step(
        self,
        name: str,
        *,
        retries: int = 0,
        delay: float | Backoff = 1.0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        **fields: str | None,
    ) -> Step:
        """A step of this run; see `Step`. ``fields``: agent, concept_id, category."""
        return Step(self._logger, name, retries=retries, delay=delay, retry_on=retry_on, **fields)

    async def execute(
        self, name: str, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await ``function(*args, **kwargs)`` as the step ``name``, once."""
        return await self.step(name).execute(function, *args, **kwargs)

    def log(
        self,
        level: Level,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        duration_ms: float | None = None,
    ) -> None:
        """A record of this run, in the step around it."""
        here = within()
        self._logger.log(
            level,
            here.category or "workflow",
            here.step,
            message,
            details=details,
            duration_ms=duration_ms,
        )

    # The block

    def __enter__(self) -> Self:
        self._begin()
        self._tell()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(error)
        try:
            self._tell()
        finally:
            self._leave()

    async def __aenter__(self) -> Self:
        self._begin()
        await self._atell()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(error)
        try:
            await self._atell()
        finally:
            self._leave()

    def _begin(self) -> None:
        if self._scope is not None:
            raise WorkflowError(f"The run {self.run_id} is entered already.")
        self._scope = bound(within(run_id=self.run_id, **self._fields))
        self._scope.__enter__()
        self._began = time.monotonic()
        self.status, self.error, self.duration_ms = RunStatus.RUNNING, None, None
        self.log("info", f"{self.name} started", details={"status": self.status})

    def _leave(self) -> None:
        leaving, self._scope = self._scope, None
        leaving.__exit__(None, None, None)

    def _end(self, error: BaseException | None) -> None:
        self.error = error
        self.duration_ms = round((time.monotonic() - self._began) * 1000, 3)
        level: Level = "info"
        message, details = f"{self.name} succeeded", dict[str, Any]()
        if error is None:
            self.status = RunStatus.SUCCEEDED
        elif isinstance(error, WAYS_OUT):
            self.status, message = RunStatus.LEFT, f"{self.name} left: {one_line(error)}"
        elif isinstance(error, Exception):
            self.status, message = RunStatus.FAILED, f"{self.name} failed: {one_line(error)}"
            level, details = "error", {} if told(error) else described(error)
        else:
            self.status, level = RunStatus.CANCELLED, "warning"
            message = f"{self.name} cancelled: {type(error).__name__}"
        self.log(
            level, message, details={"status": self.status, **details}, duration_ms=self.duration_ms
        )

    def _tell(self) -> None:
        for callback in self._callbacks.get(self.status, ()):
            try:
                answer = callback(self)
                if inspect.isawaitable(answer):
                    _close(answer)
                    raise WorkflowError(
                        "A coroutine function cannot be awaited here.", fix="Use async with."
                    )
            except Exception as error:  # noqa: BLE001 (whoever is told must not stop the run)
                self._complain(callback, error)

    async def _atell(self) -> None:
        for callback in self._callbacks.get(self.status, ()):
            try:
                answer = callback(self)
                if inspect.isawaitable(answer):
                    await answer
            except Exception as error:  # noqa: BLE001
                self._complain(callback, error)

    def _complain(self, callback: Callback, error: Exception) -> None:
        name = getattr(callback, "__qualname__", repr(callback))
        self.log(
            "warning", f"the callback {name} failed: {one_line(error)}", details=described(error)
        )


def _several(callbacks: Callbacks) -> tuple[Callback, ...]:
    return (callbacks,) if callable(callbacks) else tuple(callbacks)


def _close(answer: object) -> None:
    """A coroutine nobody will await."""
    if inspect.iscoroutine(answer):
        answer.close()
