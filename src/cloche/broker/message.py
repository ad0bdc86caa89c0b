"""kombu's message envelope (JSON): decode, mark, encode.

Layout: ``{"body", "content-type", "content-encoding", "headers", "properties"}``
(kombu/transport/virtual/base.py, Channel.prepare_message).
"""

from __future__ import annotations

from typing import Any

import orjson
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

Envelope = dict[str, Any]

#: Times the worker that held the message died. RabbitMQ's name for the same count.
DELIVERY_COUNT = "x-delivery-count"

#: Who died holding it: a list of {"consumer", "at" (Unix seconds)}.
DEATHS = "x-deaths"

#: How long the message was put aside, ms: the name RabbitMQ's delayed exchange uses. A message
#: that has it and lies in a queue has waited; its ``eta`` is to be ignored.
DELAY = "x-delay"


def decode(raw: bytes) -> Envelope:
    """The envelope in ``raw``.

    Raises ValueError with the reason if it is none.
    """
    try:
        # kombu revives {"__type__": ...}; orjson is several times faster for all others.
        envelope = loads(raw.decode()) if b'"__type__"' in raw else orjson.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(envelope, dict):
        raise ValueError(f"not a JSON object but {type(envelope).__name__}")
    properties = envelope.get("properties")
    if not isinstance(properties, dict):
        raise ValueError("without properties")
    if not isinstance(properties.setdefault("delivery_info", {}), dict):
        raise ValueError("with malformed delivery_info")
    if "body" not in envelope:
        raise ValueError("without body")
    if not isinstance(envelope.setdefault("headers", {}), dict):
        raise ValueError("with malformed headers")
    return envelope


def encode(envelope: Envelope) -> str:
    """The JSON text kombu would write."""
    return str(dumps(envelope))


def mark_redelivered(envelope: Envelope) -> None:
    """Say in the envelope that it was delivered before."""
    envelope["headers"]["redelivered"] = True
    envelope["properties"]["delivery_info"]["redelivered"] = True


def count_death(envelope: Envelope, consumer: str, at: float) -> None:
    """Say that ``consumer`` died holding it, found dead ``at`` (Unix seconds)."""
    headers = envelope["headers"]
    headers[DELIVERY_COUNT] = delivery_count(envelope) + 1
    deaths = headers.get(DEATHS)
    known = deaths if isinstance(deaths, list) else []
    headers[DEATHS] = [*known, {"consumer": consumer, "at": at}]


def published(envelope: Envelope) -> float | None:
    """When a producer of ours published it, Unix seconds; stock producers do not say."""
    at = envelope["properties"].get("timestamp")
    return float(at) if isinstance(at, int | float) else None


def forgive(envelope: Envelope) -> None:
    """Forget all deaths: the message starts afresh."""
    for name in (DELIVERY_COUNT, DEATHS):
        envelope["headers"].pop(name, None)


def delivery_count(envelope: Envelope) -> int:
    """How many consumers died holding it."""
    count = envelope["headers"].get(DELIVERY_COUNT, 0)
    return count if isinstance(count, int) else 0


class Message(virtual.Message):
    """kombu's message; a body that cannot be decoded makes it a dead letter.

    Celery acknowledges such a message, which elsewhere is the end of it
    (celery/worker/consumer/consumer.py, on_decode_error).
    """

    undecodable: Exception | None = None

    def _decode(self) -> Any:
        try:
            return super()._decode()
        except Exception as error:
            self.undecodable = error
            raise

    def ack(self, multiple: bool = False) -> None:
        """Settle it."""
        if not self._refused():
            super().ack(multiple)

    def reject(self, requeue: bool = False) -> None:
        """Make it a dead letter, or put it back with ``requeue``."""
        if not self._refused():
            super().reject(requeue)

    def _refused(self) -> bool:
        if self.undecodable is None or self.acknowledged:
            return False
        detail = f"{type(self.undecodable).__name__}: {self.undecodable}"
        self.channel.refuse(self.delivery_tag, "undecodable", detail)
        self.channel.qos.forget(self.delivery_tag)
        self._state = "REJECTED"
        return True
