"""Queue operations: pause, count, look, move, purge and restore."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import redis

from cloche.broker import delayed, lua, message
from cloche.broker.connection.commands import send
from cloche.broker.keys import Keys
from cloche.broker.lease.lease import key_of, number_of

#: Seconds a snapshot is kept.
KEEP_SNAPSHOT = 7 * 86400

#: Where a message of a queue is: in it, put aside until it is due, in the hands of a consumer.
Part = Literal["ready", "delayed", "inflight"]


@dataclass(frozen=True, slots=True)
class QueueLength:
    """Messages by part: ``ready`` by priority step, ``delayed``, ``inflight`` (in workers)."""

    ready: dict[int, int]
    delayed: int
    inflight: int

    @property
    def waiting(self) -> int:
        return sum(self.ready.values())


@dataclass(frozen=True, slots=True)
class Peeked:
    """A message as it lies in the queue.

    ``published`` is Unix seconds, None if not told; ``due`` the same by the server's clock, of a
    delayed one.
    """

    task: str | None
    task_id: str | None
    priority: int
    published: float | None
    raw: bytes
    part: Part
    due: float | None


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """What a purge set aside. ``at`` is Unix seconds."""

    id: str
    queue: str
    at: float
    messages: int


class Queues:
    """The queues of one server. ``client`` must return bytes, as redis-py does by default."""

    def __init__(self, client: redis.Redis, keys: Keys | None = None) -> None:
        self._client = client
        self._keys = keys or Keys()

    def pause(self, queue: str) -> None:
        """Let consumers of ours fetch nothing from it; what runs goes on."""
        send(self._client, "SADD", self._keys.paused, queue)

    def resume(self, queue: str) -> None:
        """Undo :meth:`pause`."""
        send(self._client, "SREM", self._keys.paused, queue)

    def paused(self) -> list[str]:
        return sorted(name.decode() for name in send(self._client, "SMEMBERS", self._keys.paused))

    def length(self, queue: str) -> QueueLength:
        ready = {
            step: int(send(self._client, "LLEN", key)) for step, key in self._lists(queue).items()
        }
        delayed = int(send(self._client, "ZCARD", self._keys.delayed(queue)))
        return QueueLength(ready, delayed, self.inflight().get(queue, 0))

    def inflight(self) -> dict[str, int]:
        """Messages in the hands of consumers, by queue."""
        return dict(Counter(queue for _, _, queue in self._held()))

    def _held(self) -> Iterator[tuple[str, str, str]]:
        """In-flight hash, field and queue of each message in the hands of a consumer."""
        consumers = send(self._client, "ZRANGE", self._keys.leases, 0, -1)
        dead = send(self._client, "SMEMBERS", self._keys.reaping)
        for key in (
            *(self._keys.inflight(consumer.decode()) for consumer in consumers),
            *(self._keys.reaped(consumer.decode()) for consumer in dead),
        ):
            for name in send(self._client, "HKEYS", key):
                field = name.decode()
                if number_of(field) >= 0:
                    yield key, field, self._keys.queue_of(key_of(field))

    def oldest_age(self, queue: str) -> float | None:
        """Seconds the message at the front has been ready.

        None if the queue is empty or the front was published by a stock producer, which does
        not write down when.
        """
        ages = [_age(peeked) for peeked in self._fronts(queue)]
        return max((age for age in ages if age is not None), default=None)

    def _fronts(self, queue: str) -> list[Peeked]:
        return [
            _peeked("ready", step, raw)
            for step, key in self._lists(queue).items()
            for raw in send(self._client, "LRANGE", key, -1, -1)
        ]

    def peek(self, queue: str, limit: int = 20) -> list[Peeked]:
        """Up to ``limit`` messages; they stay.

        The ready ones in the order they will be fetched, then the delayed, the next due first,
        then those in the hands of consumers.
        """
        found: list[Peeked] = []
        for step, key in self._lists(queue).items():
            if len(found) < limit:
                page = send(self._client, "LRANGE", key, -(limit - len(found)), -1)
                found += [_peeked("ready", step, raw) for raw in reversed(page)]
        for due, suffix, raw in delayed.dated(self._client, self._keys, queue, limit - len(found)):
            found.append(_peeked("delayed", self._step(suffix), raw, due))
        for key, field, name in self._held() if len(found) < limit else ():
            if name == queue and len(found) < limit:
                raw = send(self._client, "HGET", key, field)
                suffix = key_of(field).removeprefix(self._keys.queue(queue))
                if raw is not None:  # else it was settled meanwhile
                    found.append(_peeked("inflight", self._step(suffix), raw))
        return found

    def _step(self, suffix: str) -> int:
        steps = {known: step for step, known in self._keys.steps.items()}
        return steps.get(suffix, 0)

    def move(self, source: str, target: str, limit: int = 1_000_000) -> int:
        """Move messages to the end of another queue; how many.

        The ready ones, the oldest first, then the delayed, the next due first; those stay due
        when they were.
        """
        moved = 0
        to = self._lists(target)
        for step, key in self._lists(source).items():
            moved += int(lua.MOVE.run(self._client, [key, to[step]], [limit - moved]))
        places = self._delayed(source)
        return moved + self._move_delayed(places, target, limit - moved)

    def _move_delayed(self, places: list[str], target: str, limit: int) -> int:
        keys = [*places, *self._delayed(target), self._keys.delaying]
        return int(lua.MOVE_DELAYED.run(self._client, keys, [limit, target]))

    def purge(self, queue: str) -> QueueSnapshot | None:
        """Empty it of ready and delayed messages, kept aside for a week; None if there were none.

        What consumers have in their hands stays theirs.
        """
        identity = uuid.uuid4().hex[:12]
        at = time.time()
        count = self._purge(queue, identity, at)
        return QueueSnapshot(identity, queue, at, count) if count else None

    def discard(self, queue: str) -> int:
        """The same for good: kombu's and Celery's ``purge``; how many messages."""
        return self._purge(queue, "", 0.0)

    def _purge(self, queue: str, identity: str, at: float) -> int:
        head = json.dumps({"queue": queue, "at": at})[:-1] + ', "messages": '
        snapshots, *lists = self._places(queue, identity)
        keys = [
            snapshots,
            self._keys.delaying,
            *self._delayed(queue),
            *self._delayed_aside(identity),
            *lists,
        ]
        arguments: list[lua.Argument] = [queue, identity, KEEP_SNAPSHOT, head]
        return int(lua.PURGE.run(self._client, keys, arguments))

    def snapshots(self) -> list[QueueSnapshot]:
        """What purges set aside, the latest first; those whose week is over are dropped."""
        found = []
        records = send(self._client, "HGETALL", self._keys.snapshots)
        pairs = records.items() if isinstance(records, dict) else _pairs(records)
        for identity, record in pairs:
            snapshot = QueueSnapshot(identity.decode(), **json.loads(record))
            if snapshot.at + KEEP_SNAPSHOT < time.time():
                send(self._client, "HDEL", self._keys.snapshots, identity)
            else:
                found.append(snapshot)
        return sorted(found, key=lambda one: one.at, reverse=True)

    def restore(self, identity: str) -> int:
        """Put a snapshot back to the front of its queue; how many messages, 0 if unknown.

        Delayed ones are due when they were.
        """
        for snapshot in self.snapshots():
            if snapshot.id == identity:
                queue, places = snapshot.queue, self._places(snapshot.queue, identity)
                aside = self._delayed_aside(identity)
                waiting = self._move_delayed(aside, queue, snapshot.messages)
                return waiting + int(lua.RESTORE.run(self._client, places, [identity]))
        return 0

    def _delayed(self, queue: str) -> list[str]:
        return [self._keys.delayed(queue), self._keys.delayed_messages(queue)]

    def _delayed_aside(self, identity: str) -> list[str]:
        return [self._keys.snapshot(identity, part) for part in ("delayed", "delayed-messages")]

    def _lists(self, queue: str) -> dict[int, str]:
        return {step: self._keys.queue(queue, suffix) for step, suffix in self._keys.steps.items()}

    def _places(self, queue: str, identity: str) -> list[str]:
        places = [self._keys.snapshots]
        for step, key in self._lists(queue).items():
            places += [key, self._keys.snapshot(identity, step)]
        return places


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _peeked(part: Part, step: int, raw: bytes, due: float | None = None) -> Peeked:
    try:
        envelope = message.decode(raw)
    except ValueError:
        return Peeked(None, None, step, None, raw, part, due)
    headers = envelope["headers"]
    return Peeked(
        task=headers.get("task"),
        task_id=headers.get("id"),
        priority=step,
        published=message.published(envelope),
        raw=raw,
        part=part,
        due=due,
    )


def _age(peeked: Peeked) -> float | None:
    if peeked.published is None:
        return None
    waited = message.waited(message.decode(peeked.raw)) or 0.0
    return max(0.0, time.time() - peeked.published - waited / 1000)
