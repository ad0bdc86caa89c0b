"""Messages that need nothing of the consumer but to be received, and how they are.

What Celery would do for a plain message between the broker and the pool
(celery/worker/strategy.py) happens here, in the same order, without its second decoding. Any other
message takes Celery's own way: delayed, rate-limited, expiring or revoked tasks, other
serializers, older protocols, whatever cannot be read.
"""

from __future__ import annotations

import json
import logging
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Any

import orjson
from celery import signals
from celery.app import trace as stock_trace
from celery.utils.imports import symbol_by_name
from celery.worker import state, strategy
from celery.worker.request import Request

from cloche.aio.direct_request import received_fields

#: The strategy whose steps these are: tasks with others take Celery's way.
STRATEGY = "celery.worker.strategy:default"

#: Headers that make a message something else than a plain one.
_SPECIAL = ("eta", "expires", "compression", "x-delivery-count", "stamped_headers")

# orjson would make floats of long integers.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class PlainMessages:
    """Tells plain messages of one consumer from others and receives them."""

    #: Tasks whose messages can be plain: their requests' classes by name.
    _classes: Mapping[str, type[Any]] = {}
    _eventer: Any

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        accepted = consumer.task_consumer.accept
        self._decodes = accepted is None or "application/json" in accepted
        self._does_info = strategy.logger.isEnabledFor(logging.INFO)

    def _request(self, raw: bytes, tag: str) -> Any:
        """The request in a plain message, else None."""
        if b'"__type__"' in raw:
            return None
        try:
            envelope = orjson.loads(raw)
            headers, properties = envelope["headers"], envelope["properties"]
            made = self._classes.get(headers["task"])
            if made is None or not self._plain(envelope, headers, properties):
                return None
            body = a2b_base64(envelope["body"])
            if b'"__type__"' in body:
                return None
            payload = _decoded(body.decode())
            properties["delivery_tag"] = tag
            return made(envelope, payload)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration):
            return None  # the channel and Celery say what is wrong with it

    def _plain(self, envelope: Any, headers: Any, properties: Any) -> bool:
        """Whether all that Celery's way would do to it is done here."""
        consumer = self._consumer
        for name in _SPECIAL:
            if headers.get(name):
                return False
        return (
            envelope["content-type"] == "application/json"
            and envelope["content-encoding"] == "utf-8"
            and properties["body_encoding"] == "base64"
            and headers["id"] not in state.revoked
            and (consumer.disable_rate_limits or consumer.task_buckets[headers["task"]] is None)
        )

    def _receive(self, request: Any) -> None:
        """celery.worker.strategy.default: log, signal, event, state."""
        if self._does_info:
            context = {
                "id": request.id,
                "name": request.name,
                "args": request._argsrepr,
                "kwargs": request._kwargsrepr,
                "eta": None,
            }
            strategy.logger.info(stock_trace.LOG_RECEIVED, context, extra={"data": context})
        if signals.task_received.receivers:
            signals.task_received.send(sender=self._consumer, request=request)
        if self._eventer.enabled and request._task.send_events:
            self._eventer.send("task-received", **received_fields(request))
        state.task_reserved(request)
        for callback in self._consumer.on_task_message:
            callback(request)


def _decoded(text: str) -> Any:
    """As ``json.loads``, without the white space that no producer puts around a body."""
    value, end = _scan(text, 0)
    if end != len(text):
        raise ValueError("more than one value")
    return value


def is_stock(task: Any) -> bool:
    """Whether the task is received and requested as Celery does it."""
    kind = symbol_by_name(task.Request)
    ours = kind is Request or vars(kind).get("begins_directly", False)
    return bool(task.Strategy == STRATEGY and ours)
