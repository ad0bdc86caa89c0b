"""kombu's message envelope (JSON): decode, mark, encode.

Layout: ``{"body", "content-type", "content-encoding", "headers", "properties"}``
(kombu/transport/virtual/base.py, Channel.prepare_message). What the transport itself has to
remember of a message stands beside them in a field of its own, ``"cloche"``: kombu passes over
fields it does not know, so no task sees it, nothing copies it into another message, and no header
of a producer is taken for it (decision 0063).
"""

from __future__ import annotations

import sys
from typing import Any

import orjson
from kombu.exceptions import DecodeError
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

Envelope = dict[str, Any]

#: The transport's own field of an envelope.
OWN = "cloche"

#: In it: when a producer of ours published the message, Unix seconds.
AT = "at"

#: In it: how long the message was put aside, ms. One that has it and lies in a queue has waited;
#: its ``eta`` is to be ignored.
WAITED = "waited"

#: In it: who died holding the message, a list of {"consumer", "at" (Unix seconds)}.
DEATHS = "deaths"

#: Integers of so many digits orjson may make floats of; found by writing 0 for each digit.
_LONG = b"0" * 19
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)


def read(raw: bytes) -> Any:
    """The JSON value in ``raw`` as kombu reads it: lone surrogates, NaN, long integers and all.

    Raises ValueError or RecursionError.
    """
    # kombu revives {"__type__": ...}; orjson is several times faster for all others. In kombu's
    # own order the body, which may be long, stands before the headers.
    behind = raw[max(0, raw.find(b'"headers"')) :]
    if b'"__type__"' not in raw and _LONG not in behind.translate(_DIGITS):
        try:
            return orjson.loads(raw)
        except ValueError:
            pass
    return loads(raw.decode(errors="replace"))


def decode(raw: bytes) -> Envelope:
    """The envelope in ``raw``.

    Raises ValueError with the reason if it is none.
    """
    try:
        envelope = read(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(envelope, dict):
        raise ValueError(f"not a JSON object but {type(envelope).__name__}")
    properties = envelope.get("properties")
    if not isinstance(properties, dict):
        raise ValueError("without properties")
    for part, name in ((properties, "delivery_info"), (envelope, "headers")):
        if part.get(name) is None:  # kombu reads null as none of them
            part[name] = {}
        elif not isinstance(part[name], dict):
            raise ValueError(f"with malformed {name}")
    if "body" not in envelope:
        raise ValueError("without body")
    adopt(envelope)
    return envelope


def undisturbed(raw: bytes) -> Any:
    """The envelope as it stands in ``raw``, unchecked; None if a consumer died holding it.

    Raises what comes of one that is malformed: ValueError, TypeError, KeyError, AttributeError or
    RecursionError.
    """
    envelope = read(raw)
    adopt(envelope)
    return None if deaths(envelope) else envelope


def encode(envelope: Envelope) -> str:
    """The JSON text kombu would write."""
    return str(dumps(envelope))


def own(envelope: Envelope) -> dict[str, Any]:
    """The transport's own field, made where there is none."""
    found = envelope.get(OWN)
    if not isinstance(found, dict):
        found = envelope[OWN] = {}
    return found


def adopt(envelope: Envelope) -> None:
    """Take what an earlier version wrote among headers and properties out of there.

    Up to the version of 2026-11-30 only producers of ours wrote a fraction into ``timestamp``.
    """
    properties = envelope["properties"]
    if OWN in envelope or type(properties.get("timestamp")) is not float:
        return
    headers, kept = envelope["headers"], own(envelope)
    kept[AT] = properties.pop("timestamp")
    headers.pop("x-delivery-count", None)
    for name, old in ((WAITED, "x-delay"), (DEATHS, "x-deaths")):
        if old in headers:
            kept[name] = headers.pop(old)


def mark_redelivered(envelope: Envelope) -> None:
    """Say in the envelope that it was delivered before: where kombu says it, to the letter."""
    envelope["headers"]["redelivered"] = True
    envelope["properties"]["delivery_info"]["redelivered"] = True


def count_death(envelope: Envelope, consumer: str, at: float) -> None:
    """Say that ``consumer`` died holding it, found dead ``at`` (Unix seconds)."""
    own(envelope)[DEATHS] = [*deaths(envelope), {"consumer": consumer, "at": at}]


def deaths(envelope: Envelope) -> list[dict[str, Any]]:
    """Who died holding it: a list of {"consumer", "at" (Unix seconds)}."""
    found = _kept(envelope, DEATHS)
    return found if isinstance(found, list) else []


def delivery_count(envelope: Envelope) -> int:
    """How many consumers died holding it."""
    return len(deaths(envelope))


def forgive(envelope: Envelope) -> None:
    """Forget all deaths: the message starts afresh."""
    own(envelope).pop(DEATHS, None)


def published(envelope: Envelope) -> float | None:
    """When a producer of ours published it, Unix seconds; stock producers do not say."""
    at = _kept(envelope, AT)
    return float(at) if isinstance(at, int | float) else None


def waited(envelope: Envelope) -> float | None:
    """How long it was put aside, ms; None if it was not."""
    wait = _kept(envelope, WAITED)
    return wait if isinstance(wait, int | float) else None


def _kept(envelope: Envelope, name: str) -> Any:
    found = envelope.get(OWN)
    return found.get(name) if isinstance(found, dict) else None


class Message(virtual.Message):
    """kombu's message; a body that cannot be decoded makes it a dead letter.

    Celery acknowledges such a message, which elsewhere is the end of it
    (celery/worker/consumer/consumer.py, on_decode_error).
    """

    undecodable: Exception | None = None

    def __init__(self, payload: Envelope, channel: Any = None, **kwargs: Any) -> None:
        payload["properties"].setdefault("delivery_tag", "")  # of one that was not delivered
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception:  # noqa: BLE001 (whatever its body_encoding makes of the body)
            super().__init__({**payload, "body": ""}, channel=channel, **kwargs)
            self.errors.append(sys.exc_info())
        if self.errors:  # kombu's consumer asks for these before it decodes
            self.undecodable = self.errors[0][1]

    def _decode(self) -> Any:
        try:
            found = super()._decode()
            if "task" in self.headers and (found is None or isinstance(found, int | float)):
                # Celery's worker would end of it, and the next one, too.
                raise DecodeError(f"a task without arguments: {found!r}")
            return found
        except Exception as error:
            self.undecodable = error
            raise

    def ack(self, multiple: bool = False) -> None:
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
        self.channel.refuse(self.delivery_tag, "undecodable", detail, self.undecodable)
        self.channel.qos.forget(self.delivery_tag)
        self._state = "REJECTED"
        return True
