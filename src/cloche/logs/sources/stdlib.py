"""Python's logging as a source of execution logs.

::

    logging.getLogger().addHandler(ExecutionLogHandler(logger))
    log.info("fetched %d pages", n, extra={"step": "fetch", "run_id": run_id})
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from cloche.logs.context import surroundings
from cloche.logs.record import LEVEL_NAMES, Level, RecordSink
from cloche.logs.step import described

#: What ``extra=`` may set of a record.
FIELDS = ("category", "step", "task_id", "run_id", "concept_id", "agent", "duration_ms")
#: Attributes every record of logging has, and those of a record's own that are no details.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message", "asctime", "taskName", "details", "data", *FIELDS,
}  # fmt: skip
#: Loggers that speak while records are shipped and written: to log what they say would make
#: the next record, without end.
PIPELINE = (
    "cloche.logs", "cloche.broker", "kombu", "amqp", "redis", "sqlalchemy", "alembic", "psycopg",
)  # fmt: skip
_LEVELS = sorted(LEVEL_NAMES, reverse=True)
#: The tasks that ship and write records; what Celery says of those is not logged either.
_SHIPPING = "cloche.logs."


class ExecutionLogHandler(logging.Handler):
    """Hands records of logging to an execution logger; never waits, never raises.

    ``extra=`` sets ``run_id``, ``task_id``, ``step``, ``category``, ``agent``, ``concept_id``,
    ``duration_ms`` and ``details``; any other extra goes into the details. The category is else
    the logger's name, an exception goes into the details. What the pipeline itself says is
    passed over: the loggers of `PIPELINE`, and anything said while a record is handed over.
    """

    def __init__(self, logger: RecordSink, level: int | str = logging.INFO) -> None:
        super().__init__(level)
        self._logger = logger
        self._inside = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Log it, unless the pipeline says it."""
        if getattr(self._inside, "busy", False) or from_pipeline(record):
            return
        self._inside.busy = True
        try:
            self._log(record)
        except Exception:  # noqa: BLE001 (as every handler: logging.raiseExceptions decides)
            self.handleError(record)
        finally:
            self._inside.busy = False

    def _log(self, record: logging.LogRecord) -> None:
        given = vars(record)
        fields = {name: given[name] for name in FIELDS if given.get(name) is not None}
        here = surroundings()
        self._logger.log(
            level_of(record.levelno),
            str(fields.pop("category", here.category or record.name)),
            fields.pop("step", here.step),
            record.getMessage(),
            details=_details(record) or None,
            **fields,
        )


def level_of(number: int) -> Level:
    """The level of ours at or below a number of logging's: 25 is info."""
    return next((LEVEL_NAMES[least] for least in _LEVELS if number >= least), "debug")


def from_pipeline(record: logging.LogRecord) -> bool:
    """Whether shipping or writing records made this one."""
    for name in PIPELINE:
        if record.name == name or record.name.startswith(f"{name}."):
            return True
    if not record.name.startswith("celery."):
        return False
    # Celery gives what it says of a task a dict with the task's name (celery.app.trace).
    data: Any = getattr(record, "data", None) or record.args
    task = data.get("name") if isinstance(data, dict) else None
    return isinstance(task, str) and task.startswith(_SHIPPING)


def _details(record: logging.LogRecord) -> dict[str, Any]:
    given = vars(record)
    details = {name: value for name, value in given.items() if name not in _OWN}
    own = given.get("details")
    details |= own if isinstance(own, dict) else {} if own is None else {"details": own}
    if record.exc_info and record.exc_info[1] is not None:
        details |= described(record.exc_info[1])
    elif record.exc_text:
        details["traceback"] = record.exc_text
    if record.stack_info:
        details["stack"] = record.stack_info
    return details
