"""Task events of a busy worker: one PUBLISH for all of a moment.

Celery's worker collects events and sends them in each turn of its loop, at high rates about one
message for every task. Their bodies are JSON lists; lists of the same moment are joined.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Callable
from typing import Any

from kombu.asynchronous import get_event_loop

from cloche.broker.message import Envelope
from cloche.broker.outage import ERRORS

logger = logging.getLogger("cloche.transport")

#: The routing key of such a list (celery/events/dispatcher.py, flush).
ROUTING_KEY = "task.multi"

#: Seconds events may wait for others.
MOMENT = 0.02

#: Messages kept while the server is away; older ones are dropped.
KEPT = 1000


class EventBuffer:
    """Joins event lists; ``publish(exchange, message, routing_key)`` sends one."""

    def __init__(self, publish: Callable[[str, Envelope, str], None]) -> None:
        self._publish = publish
        self._waiting: list[tuple[str, Envelope]] = []
        self._planned = self._closed = False
        self._pid = os.getpid()

    def take(self, exchange: str, envelope: Envelope, routing_key: str) -> bool:
        """Take charge of a message if it is such a list and an event loop runs to send it."""
        properties = envelope["properties"]
        if (
            routing_key != ROUTING_KEY
            or envelope.get("content-type") != "application/json"
            or properties.get("body_encoding") != "base64"
            or envelope["headers"].get("compression")
            or os.getpid() != self._pid
            or self._closed
        ):
            return False
        loop: Any = get_event_loop()
        if loop is None:
            return False
        self._waiting.append((exchange, envelope))
        if not self._planned:
            self._planned = True
            loop.call_later(MOMENT, self._on_time)
        return True

    def close(self) -> None:
        """Take no more; what waits is lost with its channel, as events are."""
        self._closed = True
        if self._waiting:
            logger.debug("%d lists of events went with their channel", len(self._waiting))
        self._waiting.clear()

    def _on_time(self) -> None:
        if self._closed:
            return
        try:
            self.flush()
        except ERRORS as error:
            logger.debug("events wait for the server: %r", error)
            loop: Any = get_event_loop()
            if loop is not None:
                self._planned = True
                loop.call_later(1.0, self._on_time)

    def flush(self) -> None:
        """Send all. Raises what redis-py raises; nothing is lost then, up to a limit."""
        self._planned = False
        waiting, self._waiting = self._waiting[-KEPT:], []
        try:
            while waiting:
                alike, rest = _alike(waiting)
                self._publish(waiting[0][0], joined(alike), ROUTING_KEY)
                waiting = rest
        except ERRORS:
            self._waiting = waiting + self._waiting
            raise


def _alike(
    waiting: list[tuple[str, Envelope]],
) -> tuple[list[Envelope], list[tuple[str, Envelope]]]:
    """The messages that can be joined with the first, and the others."""
    exchange, first = waiting[0]
    alike, rest = [], []
    for pair in waiting:
        if (pair[0], pair[1]["headers"]) == (exchange, first["headers"]):
            alike.append(pair[1])
        else:
            rest.append(pair)
    return alike, rest


def joined(envelopes: list[Envelope]) -> Envelope:
    """One message with the lists of all."""
    first = envelopes[0]
    if len(envelopes) == 1:
        return first
    lists = [base64.b64decode(one["body"]).strip() for one in envelopes]
    body = b"[" + b", ".join(one[1:-1] for one in lists) + b"]"
    return {**first, "body": binascii.b2a_base64(body, newline=False).decode()}
