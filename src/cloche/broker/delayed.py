"""Messages that wait on the server until they are due.

A producer of ours puts a message with an ``eta`` aside and says how long it waits; the server's
clock decides when. Whatever clock the worker has, a message that waited is due.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import redis
from kombu.utils.json import dumps

from cloche.broker import lua, message
from cloche.broker.commands import send
from cloche.broker.keys import Keys

if TYPE_CHECKING:
    from cloche.broker.fetch import Fetched

logger = logging.getLogger("cloche.transport")

#: A shorter rest is not worth another round trip.
LEAST_MS = 5


def parse(eta: object) -> datetime | None:
    """The moment an ``eta`` header names; naive ones are UTC. None if it names none."""
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta)
        except ValueError:
            return None
    if not isinstance(eta, datetime):
        return None
    return eta if eta.tzinfo else eta.replace(tzinfo=UTC)


def delay_of(envelope: message.Envelope) -> int | None:
    """ms a message to publish has to wait, by the producer's clock; None to publish it now."""
    headers = envelope.get("headers") or {}
    if not headers.get("eta") or message.DELAY in headers:
        return None
    moment = parse(headers["eta"])
    if moment is None:
        return None
    return wait_until(moment) or None


def wait_until(moment: datetime) -> int:
    """ms from now, by the producer's clock; 0 if that is not worth waiting."""
    wait = int((moment - datetime.now(UTC)).total_seconds() * 1000)
    return wait if wait >= LEAST_MS else 0


def marked(envelope: message.Envelope, wait: int) -> str:
    """The text to put aside."""
    envelope["headers"][message.DELAY] = wait
    return str(dumps(envelope))


def identity(envelope: message.Envelope) -> str:
    """What a delayed message can be revoked by: its task id."""
    headers = envelope["headers"]
    properties = envelope["properties"]
    return str(headers.get("id") or properties.get("correlation_id") or uuid.uuid4())


def park(
    client: redis.Redis,
    keys: Keys,
    queue: str,
    suffix: str,
    envelope: message.Envelope,
    wait: int,
) -> None:
    """Put a new message aside for ``wait`` ms. Raises what redis-py raises."""
    text = f"{suffix}:{marked(envelope, wait)}"
    names = [keys.delayed(queue), keys.delayed_messages(queue), keys.delaying]
    lua.PARK.run(client, names, [queue, wait, identity(envelope), text])


def repark(channel: Any, one: Fetched, envelope: message.Envelope) -> bool:
    """Deal with the ``eta`` of a fetched message; True if it was put aside.

    A message that is due keeps an ``eta`` (tasks may ask for it) that is past by this worker's
    clock too, or Celery would wait by that clock again.
    """
    headers = envelope["headers"]
    wait = 0 if message.DELAY in headers else _rest(channel.claim.server_time(), headers["eta"])
    if wait is None:
        return False
    if wait < LEAST_MS:
        headers["eta"] = _past(headers["eta"])
        return False
    keys: Keys = channel.keys
    suffix = one.field.partition("/")[2].removeprefix(keys.queue(one.queue))
    text = f"{suffix}:{marked(envelope, wait)}"
    names = [
        keys.delayed(one.queue),
        keys.delayed_messages(one.queue),
        keys.delaying,
        channel.claim.inflight,
    ]
    lua.PARK.run(channel.own, names, [one.queue, wait, identity(envelope), text, one.field])
    channel.claim.let_go([one.field])
    return True


def _rest(now_ms: int, eta: object) -> int | None:
    moment = parse(eta)
    return None if moment is None else int(moment.timestamp() * 1000) - now_ms


def _past(eta: object) -> str | None:
    moment = parse(eta)
    return None if moment is None else min(moment, datetime.now(UTC)).isoformat()


def waiting(client: redis.Redis, keys: Keys, queue: str, limit: int) -> list[message.Envelope]:
    """The ``limit`` messages of a queue that are due next, without those nobody can read.

    Raises what redis-py raises.
    """
    ids = send(client, "ZRANGE", keys.delayed(queue), 0, limit - 1)
    if not ids:
        return []
    found = []
    for text in send(client, "HMGET", keys.delayed_messages(queue), *ids):
        if text is not None:  # else it was promoted meanwhile
            with contextlib.suppress(ValueError):
                found.append(message.decode(text.partition(b":")[2]))
    return found


def revoke(client: redis.Redis, keys: Keys, task_id: str) -> int:
    """Remove a delayed task; how many messages it had. Raises what redis-py raises."""
    removed = 0
    for name in client.smembers(keys.delaying):
        queue = name.decode() if isinstance(name, bytes) else str(name)
        copies = 1
        field = task_id
        while client.hdel(keys.delayed_messages(queue), field):
            client.zrem(keys.delayed(queue), field)
            removed += 1
            copies += 1
            field = f"{task_id}#{copies}"
    return removed
