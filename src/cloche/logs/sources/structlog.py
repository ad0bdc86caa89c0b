"""structlog as a source of execution logs: a processor for its chain.

::

    structlog.configure(processors=[
        structlog.contextvars.merge_contextvars,
        ExecutionLogProcessor(logger),
        structlog.dev.ConsoleRenderer(),
    ])

Needs ``pip install 'cloche[structlog]'``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cloche.errors import ExtraMissingError
from cloche.logs.context import surroundings
from cloche.logs.record import LEVEL_NAMES, Level, RecordSink
from cloche.logs.sources.stdlib import FIELDS
from cloche.logs.step import described

try:
    from structlog import DropEvent
    from structlog.typing import EventDict, WrappedLogger
except ModuleNotFoundError as error:
    raise ExtraMissingError(
        "structlog is not installed.", fix="pip install 'cloche[structlog]'"
    ) from error

#: structlog's methods that are not called as a level of ours; any other is info.
_LEVELS: dict[str, Level] = {
    "exception": "error", "fatal": "critical", "warn": "warning", "notset": "debug",
    **{level: level for level in LEVEL_NAMES.values()},
}  # fmt: skip
#: What other processors put in: no details.
_OWN = frozenset({"event", "level", "timestamp", "logger", "exc_info", "details", *FIELDS})


class ExecutionLogProcessor:
    """Logs every event, then hands it on; or ends it there (``last``), where nothing else prints.

    Keys named as fields of a record become those, ``exc_info`` and all other keys details. Put
    it before a renderer.
    """

    def __init__(self, logger: RecordSink, *, last: bool = False) -> None:
        self._logger = logger
        self._last = last

    def __call__(self, wrapped: WrappedLogger, method: str, event: EventDict) -> EventDict:
        fields = {name: event[name] for name in FIELDS if event.get(name) is not None}
        here = surroundings()
        self._logger.log(
            _LEVELS.get(method, "info"),
            str(fields.pop("category", here.category or event.get("logger") or "structlog")),
            fields.pop("step", here.step),
            str(event.get("event", "")),
            details=_details(event) or None,
            **fields,
        )
        if self._last:
            raise DropEvent
        return event


def _details(event: Mapping[str, Any]) -> dict[str, Any]:
    details = {name: value for name, value in event.items() if name not in _OWN}
    own = event.get("details")
    details |= own if isinstance(own, dict) else {} if own is None else {"details": own}
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        details |= described(error)
    return details
