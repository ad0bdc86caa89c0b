"""Dead letters on RabbitMQ: the queue that work queues name, read without taking it apart."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import amqp
import orjson
from amqp.exceptions import NotFound
from kombu import Connection

from cloche.broker.dead_letters import DeadLetter
from cloche.broker.rabbitmq.queue import DEAD

#: RabbitMQ's words (https://www.rabbitmq.com/docs/dlx) for what we call otherwise.
_REASONS = {"delivery_limit": "max-deliveries"}
#: What RabbitMQ has written into the headers of a dead letter.
_MARKS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count")


class AmqpDeadLetters:
    """Those of one virtual host, as :class:`cloche.broker.dead_letters.DeadLetters`.

    AMQP can only take messages from the front, so each call takes all and gives back what it
    does not settle; two at the same time see half each.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __len__(self) -> int:
        with closing(self._connection.channel()) as channel:
            try:
                return int(channel.queue_declare(DEAD, passive=True).message_count)
            except NotFound:
                return 0

    def get(self, identity: str) -> DeadLetter | None:
        """The one with this id."""
        return next((one for one in self._letters() if one.id == identity), None)

    def latest(self, *, queue: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """The latest ``limit``, newest first; only those from ``queue`` if given."""
        found = [one for one in self._letters() if queue is None or one.queue == queue]
        return sorted(found, key=lambda one: one.at, reverse=True)[:limit]

    def retry(self, ids: Iterable[str] | None = None) -> int:
        """Put them (all without ``ids``) back into their queues, deaths forgiven; how many.

        Raises amqp's ChannelError (312, NO_ROUTE) where the queue is gone; the letter stays.
        """
        wanted, done = _wanted(ids), 0
        with closing(self._connection.channel()) as channel:
            for raw, letter in list(self._taken(channel)):
                if wanted is None or letter.id in wanted:
                    channel.basic_publish(_forgiven(raw), "", letter.queue, mandatory=True)
                    channel.basic_ack(raw.delivery_tag)
                    done += 1
        return done

    def purge(self, ids: Iterable[str] | None = None) -> int:
        """Delete them (all without ``ids``); how many there were."""
        wanted, done = _wanted(ids), 0
        with closing(self._connection.channel()) as channel:
            for raw, letter in list(self._taken(channel)):
                if wanted is None or letter.id in wanted:
                    channel.basic_ack(raw.delivery_tag)
                    done += 1
        return done

    def _letters(self) -> list[DeadLetter]:
        with closing(self._connection.channel()) as channel:
            return [letter for _, letter in self._taken(channel)]

    def _taken(self, channel: Any) -> Iterator[tuple[amqp.Message, DeadLetter]]:
        """All, unacknowledged: what stays so goes back when the channel is closed."""
        try:
            while (raw := channel.basic_get(DEAD)) is not None:
                yield raw, _letter(raw)
        except NotFound:
            return


def _wanted(ids: Iterable[str] | None) -> Collection[str] | None:
    return None if ids is None else frozenset(ids)


def _letter(raw: amqp.Message) -> DeadLetter:
    headers = raw.properties.get("application_headers") or {}
    deaths = tuple(headers.get("x-death") or ())
    last = deaths[0] if deaths else {}
    at = last.get("time")
    own = {key: value for key, value in headers.items() if not key.startswith(_MARKS)}
    body = raw.body if isinstance(raw.body, bytes) else raw.body.encode()
    identity = f"{last.get('queue')}/{at}/{raw.properties.get('correlation_id')}/".encode() + body
    message = {
        "headers": own,
        "content-type": raw.properties.get("content_type"),
        "body": body.decode(errors="replace"),
    }
    return DeadLetter(
        id=hashlib.sha256(identity).hexdigest()[:12],
        queue=str(last.get("queue", "")),
        key=",".join(last.get("routing-keys") or ()),
        reason=_REASONS.get(str(last.get("reason")), str(last.get("reason"))),
        detail="",
        at=at.replace(tzinfo=UTC).timestamp() if isinstance(at, datetime) else 0.0,
        task=own.get("task"),
        task_id=own.get("id"),
        deaths=tuple(_plain(death) for death in deaths),
        raw=orjson.dumps(message, default=str),
    )


def _plain(death: dict[str, Any]) -> dict[str, Any]:
    return {
        key: f"{value:%Y-%m-%d %H:%M:%SZ}" if isinstance(value, datetime) else value
        for key, value in death.items()
    }


def _forgiven(raw: amqp.Message) -> amqp.Message:
    headers = raw.properties.get("application_headers") or {}
    kept = {key: value for key, value in headers.items() if not key.startswith(_MARKS)}
    return amqp.Message(raw.body, **{**raw.properties, "application_headers": kept})
