"""A worker's words about an outage, whoever in it notices: one voice for each thing that is away.

Celery and the transport log each failed try. The filter below takes those lines away and has the
voice of that thing (:mod:`cloche.outages`) say it once, a minute later again, and when it is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.worker.consumer import consumer as celery_consumer

from cloche.broker.baton import server_of
from cloche.broker.outage import denied
from cloche.outages import Voice

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


class Spoken(logging.Filter):
    """Gives records about an outage to ``voice`` and lets the others pass."""

    def __init__(self, voice: Voice) -> None:
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


def give_voices(app: Celery) -> None:
    """Put the filters in place, for this process; again replaces those of before.

    A result backend on the broker's own server is away when that is: one voice tells of both.
    """
    remind = app.cloche_settings.broker.remind
    if keeps_results(app):

        def ask() -> None:
            ask_broker(app)
            ask_results(app)

        both = Voice(
            "the broker",
            ask,
            "nothing is fetched, results wait, what runs goes on",
            remind=remind,
        )
        voices = {BROKER: both, RESULTS: both}
    else:
        voices = {
            BROKER: Voice(
                "the broker",
                lambda: ask_broker(app),
                "nothing is fetched, what runs goes on",
                remind=remind,
            ),
            RESULTS: Voice(
                "the result backend",
                lambda: ask_results(app),
                "results wait, and so do the acknowledgements of their tasks",
                remind=remind,
            ),
        }
    for names, voice in voices.items():
        for name in names:
            _put(logging.getLogger(name), Spoken(voice))


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


def _put(logger: logging.Logger, spoken: Spoken) -> None:
    for present in [one for one in logger.filters if isinstance(one, Spoken)]:
        logger.removeFilter(present)
    # Before the filter that counts repeats: what is spoken of is none.
    logger.filters.insert(0, spoken)


def ask_broker(app: Celery) -> None:
    """Connect and, on Redis, write. Raises whatever says that it is away."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
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
        backend.get_state("cloche-readiness-probe")
