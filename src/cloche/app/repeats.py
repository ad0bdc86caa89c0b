"""An outage in a handful of lines: what a logger repeats is counted instead of printed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Loggers that say the same again at every try while a broker or result backend is away:
#: without a limit a READONLY broker alone makes some 300 lines a second with tracebacks.
OUTAGE_LOGGERS = (
    "celery.worker.consumer.consumer",
    "celery.worker.consumer.connection",
    "celery.backends.redis",
    "celery.backends.asynchronous",
)
#: Seconds between two reminders of the same message.
REMIND = 60.0


@dataclass
class _Said:
    """When a message was last let through, and how often it was held back since."""

    at: float
    held: int = 0


class Repeats(logging.Filter):
    """Lets the first of equal warnings and errors through, then one a minute with a count.

    Equal means the same text before its arguments are filled in. Traceback and stack go
    with the first one only.
    """

    def __init__(self, every: float = REMIND, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every = every
        self._clock = clock
        self._said: dict[str, _Said] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is printed; a reminder is shortened and says its count."""
        if record.levelno < logging.WARNING:
            return True
        now = self._clock()
        said = self._said.get(str(record.msg))
        if said is None:
            self._said[str(record.msg)] = _Said(now)
            return True
        if now - said.at < self._every:
            said.held += 1
            return False
        if said.held:
            self._shorten(record, said.held)
        said.at, said.held = now, 0
        return True

    def _shorten(self, record: logging.LogRecord, held: int) -> None:
        first_line = record.getMessage().strip().splitlines()[0]
        record.msg, record.args = "%s (%d times more since)", (first_line, held)
        record.exc_info = record.exc_text = record.stack_info = None


def limit_repeats() -> None:
    """Put one filter on each of :data:`OUTAGE_LOGGERS`; again and again is harmless."""
    for name in OUTAGE_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, Repeats) for present in logger.filters):
            logger.addFilter(Repeats())
