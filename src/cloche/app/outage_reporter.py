"""An outage in a handful of lines: what a logger repeats is counted instead of printed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.worker.consumer import consumer as celery_consumer

from cloche.broker.connection.outage import denied
from cloche.broker.connection.probe import reach
from cloche.broker.leader_lock import server_of
from cloche.health.answers import check_results
from cloche.outages import OutageReporter
from cloche.settings.of_app import settings_of

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

#: Loggers that tell of the broker, of the result backend.
BROKER = (
    "celery.worker.consumer.consumer",
    "celery.worker.consumer.connection",
    "cloche.transport",
)

RESULTS = ("celery.backends.redis", "celery.backends.asynchronous")

#: Records by their text before arguments are filled in -> which argument says why.
_FAILURES: dict[str, int] = {
    celery_consumer.CONNECTION_ERROR: 1,
    "%s (%r)": 1,  # CONNECTION_RETRY and the error
    "%s paused: %s": 1,
}

#: The ends of what the voice speaks of.
_ENDS = frozenset({"%s resumed after %.1f s"})

_LOST = "Connection to Redis lost"

#: Of a URL that names none: Redis's.
_PORT = 6379


@dataclass
class _Said:
    """When a message was last let through, and how often it was held back since."""

    at: float
    held: int = 0


class RepeatLogFilter(logging.Filter):
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
        if not any(isinstance(present, RepeatLogFilter) for present in logger.filters):
            logger.addFilter(RepeatLogFilter())


class OutageLogFilter(logging.Filter):
    """Gives records about an outage to ``voice`` and lets the others pass."""

    def __init__(self, voice: OutageReporter) -> None:
        super().__init__()
        self._voice = voice

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is printed."""
        text = str(record.msg)
        if text in _ENDS:
            return False
        why = _why(record, text)
        if why is None:
            return True
        self._voice.failed(" ".join(why.split())[:200])
        return False


def _why(record: logging.LogRecord, text: str) -> str | None:
    """The reason in a record about an outage; None if it is about something else."""
    if text.startswith(_LOST):
        return "connection lost"
    at = _FAILURES.get(text)
    if at is None or not isinstance(record.args, tuple) or len(record.args) <= at:
        return None
    if text == "%s (%r)" and record.args[0] != celery_consumer.CONNECTION_RETRY:
        return None
    reason = record.args[at]
    if "ACL LOG" in str(reason) or (isinstance(reason, BaseException) and denied(reason)):
        return None  # a right that is missing is no outage: it does not pass
    return str(reason)


def report_outages(app: Celery) -> None:
    """Put the filters in place, for this process; again replaces those of before.

    A result backend on the broker's own server is away when that is: one voice tells of both.
    """
    remind = settings_of(app).broker.remind
    if keeps_results(app):

        def ask() -> None:
            ask_broker(app)
            ask_results(app)

        both = OutageReporter(
            "the broker",
            ask,
            "nothing is fetched, results wait, what runs goes on",
            remind=remind,
        )
        voices = {BROKER: both, RESULTS: both}
    else:
        voices = {
            BROKER: OutageReporter(
                "the broker",
                lambda: ask_broker(app),
                "nothing is fetched, what runs goes on",
                remind=remind,
            ),
            RESULTS: OutageReporter(
                "the result backend",
                lambda: ask_results(app),
                "results wait, and so do the acknowledgements of their tasks",
                remind=remind,
            ),
        }
    for names, voice in voices.items():
        for name in names:
            _put(logging.getLogger(name), OutageLogFilter(voice))


def keeps_results(app: Celery) -> bool:
    """Whether results are kept on the broker's own server, as the two URLs tell."""
    results = str(app.conf.result_backend or "")
    broker = str(app.conf.broker_write_url or app.conf.broker_url or "")
    return results.startswith("rpc:") or (bool(results) and _place(results) == _place(broker))


def _place(url: str) -> tuple[object, ...]:
    """Host and port, or the path of a socket; without database, user and options."""
    parts = urlsplit(url.partition(";")[0].removeprefix("cloche+"))
    if parts.hostname:
        return parts.hostname, parts.port or _PORT
    return (unquote(parts.path),)


def _put(logger: logging.Logger, spoken: OutageLogFilter) -> None:
    for present in [one for one in logger.filters if isinstance(one, OutageLogFilter)]:
        logger.removeFilter(present)
    # Before the filter that counts repeats: what is spoken of is none.
    logger.filters.insert(0, spoken)


def ask_broker(app: Celery) -> None:
    """Connect and, on Redis, write. Raises whatever says that it is away."""
    with app.connection_for_write() as connection:
        reach(connection)
        server = server_of(connection)
        if server is not None:
            server.client.set(server.keys.probe, "", px=1)


def ask_results(app: Celery) -> None:
    """Write where that can be tried, else read. Raises whatever says that it is away."""
    backend: Any = app.backend
    if isinstance(backend, DisabledBackend):
        return
    client = getattr(backend, "client", None)
    write: Callable[..., object] | None = getattr(client, "set", None)
    if write is not None:
        write("cloche:results-probe", "", px=1)
    else:
        check_results(app)
