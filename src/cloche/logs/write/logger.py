"""``log()``: takes a record, returns at once, and sees to it that the record arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from celery import Celery
from pydantic import ValidationError

from cloche.errors import SettingsError
from cloche.logs.codec import Limits
from cloche.logs.context import current_task_id, here
from cloche.logs.record import LEVELS, Level, LogRecord, stamp
from cloche.logs.run import Callbacks, WorkflowRun
from cloche.logs.write import exit_hooks as endings
from cloche.logs.write.counts import LogStats
from cloche.logs.write.flusher import Flusher
from cloche.logs.write.shipper import Shipper
from cloche.settings import Settings
from cloche.settings.model import LogSettings
from cloche.settings.of_app import settings_of

_new = tuple.__new__


class Fields(TypedDict, total=False):
    """What a record may have besides level, category, step and message."""

    task_id: str | None
    run_id: str | None
    concept_id: str | None
    agent: str | None
    details: Mapping[str, Any] | None
    duration_ms: float | None


class ExecutionLogger:
    """The execution log of an application, for any thread and any coroutine.

    ``app`` is the Celery application whose broker carries the records; ``options`` are settings
    of ``[logs]`` for this logger alone (``durable=True``). One a process is enough. Raises
    SettingsError for an option that does not exist or a value that does not fit.

    ::

        log = ExecutionLogger(app)
        log.info("agent", "plan", "12 steps planned", run_id=run, details={"model": "m-1"})
    """

    def __init__(self, app: Celery, settings: Settings | None = None, **options: Any) -> None:
        settings = settings or settings_of(app)
        self.settings = _refined(settings.logs, options)
        self._buffer: deque[LogRecord] = deque()
        self._append, self._enough = self._buffer.append, self.settings.batch
        # A durable one keeps nothing in memory: its buffer is the disk.
        self._room = 0 if self.settings.durable else self.settings.buffer
        self._shipper = Shipper(app, settings, self.settings)
        limits = Limits(self.settings.max_message, self.settings.max_details)
        self._flusher = Flusher(self._buffer, self._shipper, self.settings, limits)
        # Not the logger: nobody may hold it any more while its records still wait.
        endings.watch(self._flusher)

    def log(
        self,
        level: Level,
        category: str,
        step: str | None,
        message: str,
        *,
        task_id: str | None = None,
        run_id: str | None = None,
        concept_id: str | None = None,
        agent: str | None = None,
        details: Mapping[str, Any] | None = None,
        duration_ms: float | None = None,
    ) -> LogRecord:
        """Take one record; it has its id at once.

        What is not said comes from the run and the step around (`run`), the task from the Celery
        task that runs here.
        ``details`` becomes JSON when its batch leaves: do not change it any more. Raises
        ValueError for a level that is none.
        """
        if level not in LEVELS:
            raise ValueError(f"{level!r} is no level; there are: {', '.join(LEVELS)}")
        around = here()
        # As LogRecord(…) does it, without a function between: a fifth of the whole call.
        record: LogRecord = _new(
            LogRecord,
            (
                *stamp(),
                *(level, category, step or around.step, message),
                *(task_id or around.task_id or current_task_id(), run_id or around.run_id),
                *(concept_id or around.concept_id, agent or around.agent, details, duration_ms),
            ),
        )
        waiting = len(self._buffer)
        if waiting >= self._room:
            self._make_room_for(record)
            return record
        self._append(record)
        flusher = self._flusher
        # In this order: the flusher says that it sleeps and looks once more before it does.
        if not flusher.awake:
            flusher.wake()
        if waiting >= self._enough and not flusher.hurries:
            flusher.hurry()
        return record

    async def alog(
        self,
        level: Level,
        category: str,
        step: str | None,
        message: str,
        **fields: Unpack[Fields],
    ) -> LogRecord:
        """`log` for coroutines that may have to wait: for room (``overflow = "block"``), or for
        the disk (``durable``). Otherwise the same; ``log()`` does not block the loop either.
        """
        if self.settings.durable:
            return await asyncio.to_thread(self.log, level, category, step, message, **fields)
        if self.settings.overflow == "block":
            while len(self._buffer) >= self._room:
                self._flusher.hurry()
                await asyncio.sleep(0.005)
        return self.log(level, category, step, message, **fields)

    def debug(
        self, category: str, step: str | None, message: str, **fields: Unpack[Fields]
    ) -> LogRecord:
        """A record of that level."""
        return self.log("debug", category, step, message, **fields)

    def info(
        self, category: str, step: str | None, message: str, **fields: Unpack[Fields]
    ) -> LogRecord:
        """A record of that level."""
        return self.log("info", category, step, message, **fields)

    def warning(
        self, category: str, step: str | None, message: str, **fields: Unpack[Fields]
    ) -> LogRecord:
        """A record of that level."""
        return self.log("warning", category, step, message, **fields)

    def error(
        self, category: str, step: str | None, message: str, **fields: Unpack[Fields]
    ) -> LogRecord:
        """A record of that level."""
        return self.log("error", category, step, message, **fields)

    def critical(
        self, category: str, step: str | None, message: str, **fields: Unpack[Fields]
    ) -> LogRecord:
        """A record of that level."""
        return self.log("critical", category, step, message, **fields)

    def run(
        self,
        run_id: str | None = None,
        *,
        name: str = "run",
        before: Callbacks = (),
        after: Callbacks = (),
        on_error: Callbacks = (),
        **fields: str | None,
    ) -> WorkflowRun:
        """A workflow run as a block: ``with log.run(id) as run:`` or ``async with``.

        ``before``, ``after`` and ``on_error`` are told of it; ``fields`` (category, agent,
        concept_id) hold for everything logged inside. See `WorkflowRun`.
        """
        return WorkflowRun(
            self, run_id, name=name, before=before, after=after, on_error=on_error, **fields
        )

    def flush(self, timeout: float | None = 10.0) -> bool:
        """Have what was logged until now leave the memory of this process; whether it did
        within ``timeout`` seconds. It is with the broker then, in the database, or on disk.
        """
        return self._flusher.flush(timeout)

    async def aflush(self) -> bool:
        """`flush`, awaited; `asyncio.timeout` limits it."""
        return await asyncio.to_thread(self.flush)

    def close(self, timeout: float = 10.0) -> None:
        """Flush; what could not be sent within ``timeout`` seconds is kept on disk.

        Done at the end of the process too. A logger that is used again opens again.
        """
        self._flusher.close(timeout)

    def stats(self) -> LogStats:
        """What became of the records of this logger in this process."""
        return self._shipper.counts.stats(len(self._buffer) + self._flusher.aside)

    def _make_room_for(self, record: LogRecord) -> None:
        """Out of the ordinary: the buffer is full, or there is none."""
        overflow = self.settings.overflow
        if self.settings.durable:
            self._flusher.keep(self._flusher.encoded(record))
        elif overflow == "block" and not _on_a_loop():
            self._flusher.wait_for_room(self._room)
            self._append(record)
        elif overflow == "drop_oldest":
            self._flusher.drop_oldest()
            self._append(record)
        elif overflow == "drop_newest":
            self._flusher.turn_away()
        else:
            self._flusher.put_aside(self._flusher.encoded(record))
        if not self._flusher.awake:
            self._flusher.wake()


def _on_a_loop() -> bool:
    """Whether waiting here would block an event loop: such a record goes to disk instead."""
    return asyncio._get_running_loop() is not None


def _refined(logs: LogSettings, options: Mapping[str, Any]) -> LogSettings:
    try:
        return LogSettings.model_validate({**logs.model_dump(), **options})
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        )
        raise SettingsError(
            f"this execution logger cannot be made: {'; '.join(problems)}",
            problems=problems,
            fix="its options are the settings of [logs]: cloche config reference",
        ) from None
