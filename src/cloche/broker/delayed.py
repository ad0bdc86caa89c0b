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

from cloche.broker import lua, message
from cloche.broker.connection.commands import send
from cloche.broker.keys import Keys

if TYPE_CHECKING:
    from cloche.broker.lease.fetch import Fetched

logger = logging.getLogger("cloche.transport")

#: A shorter rest is not worth another round trip.
LEAST_MS = 5

#: The same task id may wait more than once (lua/park.lua); so many of them are looked for.
COPIES = 20


def parse(eta: object) -> datetime | None:
    """The moment an ``eta`` names; None if it names none, or one of a time zone left unsaid.

    Celery's producers say it; where another does not, the time zone is that of the application
    that works on the task, and waiting is Celery's.
    """
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta)
        except ValueError:
            return None
    return eta if isinstance(eta, datetime) and eta.utcoffset() is not None else None


def eta_of(envelope: message.Envelope) -> datetime | None:
    """The moment a task's message names; other messages may have a header of that name, too."""
    headers = envelope.get("headers") or {}
    if not headers.get("eta") or "task" not in headers:
        return None
    return parse(headers["eta"])


def delay_of(envelope: message.Envelope) -> int | None:
    """ms a message to publish has to wait, by the producer's clock; None to publish it now."""
    moment = eta_of(envelope)
    return None if moment is None else wait_until(moment) or None


def wait_until(moment: datetime) -> int:
    """ms from now, by the producer's clock; 0 if that is not worth waiting."""
    wait = int((moment - datetime.now(UTC)).total_seconds() * 1000)
    return wait if wait >= LEAST_MS else 0


def marked(envelope: message.Envelope, wait: int) -> str:
    """The text to put aside."""
    message.own(envelope)[message.WAITED] = wait
    return message.encode(envelope)


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

    The ``eta`` of a message that is due is left as it came, unless it is still to come by this
    worker's clock: Celery would wait by that clock again.
    """
    moment = eta_of(envelope)
    if moment is None:
        return False
    due = message.waited(envelope) is not None
    wait = 0 if due else int(moment.timestamp() * 1000) - channel.own_lease.server_time()
    if wait < LEAST_MS:
        now = datetime.now(UTC)
        if moment > now:
            envelope["headers"]["eta"] = now.isoformat()
        return False
    keys: Keys = channel.keys
    suffix = one.field.partition("/")[2].removeprefix(keys.queue(one.queue))
    text = f"{suffix}:{marked(envelope, wait)}"
    names = [
        keys.delayed(one.queue),
        keys.delayed_messages(one.queue),
        keys.delaying,
        channel.own_lease.inflight,
    ]
    lua.PARK.run(channel.own, names, [one.queue, wait, identity(envelope), text, one.field])
    channel.own_lease.let_go([one.field])
    return True


def waiting(client: redis.Redis, keys: Keys, queue: str, limit: int) -> list[message.Envelope]:
    """The ``limit`` messages of a queue that are due next, without those nobody can read.

    Raises what redis-py raises.
    """
    found = []
    for _, _, raw in dated(client, keys, queue, limit):
        with contextlib.suppress(ValueError):
            found.append(message.decode(raw))
    return found


def dated(
    client: redis.Redis, keys: Keys, queue: str, limit: int
) -> list[tuple[float, str, bytes]]:
    """The same as they lie there: due (Unix s), priority suffix, text."""
    if limit <= 0:
        return []
    pairs = send(client, "ZRANGE", keys.delayed(queue), 0, limit - 1, "WITHSCORES")
    if pairs and not isinstance(pairs[0], list | tuple):  # flat before RESP3
        pairs = list(zip(pairs[::2], pairs[1::2], strict=True))
    if not pairs:
        return []
    found = []
    texts = send(client, "HMGET", keys.delayed_messages(queue), *(pair[0] for pair in pairs))
    for (_, due), text in zip(pairs, texts, strict=True):
        if text is not None:  # else it was promoted meanwhile
            suffix, _, raw = text.partition(b":")
            found.append((float(due) / 1000, suffix.decode(), raw))
    return found


def revoke(client: redis.Redis, keys: Keys, task_id: str) -> int:
    """Remove a delayed task; how many messages it had. Raises what redis-py raises."""
    return len(take(client, keys, task_id))


def find(client: redis.Redis, keys: Keys, queue: str, task_id: str) -> message.Envelope | None:
    """A delayed task of a queue, without being taken. Raises what redis-py raises."""
    text = send(client, "HGET", keys.delayed_messages(queue), task_id)
    with contextlib.suppress(ValueError):
        return None if text is None else message.decode(text.partition(b":")[2])
    return None


def take(client: redis.Redis, keys: Keys, task_id: str) -> list[bytes]:
    """Remove a delayed task; its messages: nobody else gets them. Raises what redis-py raises."""
    taken = []
    fields = [task_id, *(f"{task_id}#{number}" for number in range(2, COPIES + 1))]
    for name in send(client, "SMEMBERS", keys.delaying):
        queue = name.decode() if isinstance(name, bytes) else str(name)
        texts = keys.delayed_messages(queue)
        for field, text in zip(fields, send(client, "HMGET", texts, *fields), strict=True):
            if text is not None and send(client, "HDEL", texts, field):
                send(client, "ZREM", keys.delayed(queue), field)
                raw = text if isinstance(text, bytes) else str(text).encode()
                taken.append(raw.partition(b":")[2])
    return taken
