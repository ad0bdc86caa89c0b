"""Queue operations: pause, count, look, move, purge and restore."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass

import redis

from cloche.broker import lua, message
from cloche.broker.commands import send
from cloche.broker.keys import Keys

#: Seconds a snapshot is kept.
KEEP_SNAPSHOT = 7 * 86400


@dataclass(frozen=True, slots=True)
class QueueLength:
    """Messages by part: ``ready`` by priority step, ``delayed``, ``inflight`` (in workers)."""

    ready: dict[int, int]
    delayed: int
    inflight: int

    @property
    def waiting(self) -> int:
        """All ready ones."""
        return sum(self.ready.values())


@dataclass(frozen=True, slots=True)
class Peeked:
    """A message as it lies in the queue. ``published`` is Unix seconds, None if not told."""

    task: str | None
    task_id: str | None
    priority: int
    published: float | None
    raw: bytes


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
        """The paused queues."""
        return sorted(name.decode() for name in send(self._client, "SMEMBERS", self._keys.paused))

    def length(self, queue: str) -> QueueLength:
        """Its messages, by part."""
        ready = {
            step: int(send(self._client, "LLEN", key)) for step, key in self._lists(queue).items()
        }
        delayed = int(send(self._client, "ZCARD", self._keys.delayed(queue)))
        return QueueLength(ready, delayed, self.inflight().get(queue, 0))

    def inflight(self) -> dict[str, int]:
        """Messages in the hands of consumers, by queue."""
        counts: dict[str, int] = {}
        for consumer in send(self._client, "ZRANGE", self._keys.leases, 0, -1):
            for field in send(self._client, "HKEYS", self._keys.inflight(consumer.decode())):
                _, slash, key = field.decode().partition("/")
                if slash:
                    queue = self._keys.queue_of(key)
                    counts[queue] = counts.get(queue, 0) + 1
        return counts

    def oldest_age(self, queue: str) -> float | None:
        """Seconds the message at the front has been ready.

        None if the queue is empty or the front was published by a stock producer, which does
        not write down when.
        """
        ages = [_age(peeked) for peeked in self._fronts(queue)]
        return max((age for age in ages if age is not None), default=None)

    def _fronts(self, queue: str) -> list[Peeked]:
        return [
            _peeked(step, raw)
            for step, key in self._lists(queue).items()
            for raw in send(self._client, "LRANGE", key, -1, -1)
        ]

    def peek(self, queue: str, limit: int = 20) -> list[Peeked]:
        """The next ``limit`` messages in the order they will be fetched; they stay."""
        found: list[Peeked] = []
        for step, key in self._lists(queue).items():
            if len(found) < limit:
                page = send(self._client, "LRANGE", key, -(limit - len(found)), -1)
                found += [_peeked(step, raw) for raw in reversed(page)]
        return found

    def move(self, source: str, target: str, limit: int = 1_000_000) -> int:
        """Move ready messages, the oldest first, to the end of another queue; how many."""
        moved = 0
        to = self._lists(target)
        for step, key in self._lists(source).items():
            moved += int(lua.MOVE.run(self._client, [key, to[step]], [limit - moved]))
        return moved

    def purge(self, queue: str) -> QueueSnapshot | None:
        """Empty it of ready messages, kept aside for a week; None if there were none."""
        identity = uuid.uuid4().hex[:12]
        at = time.time()
        head = json.dumps({"queue": queue, "at": at})[:-1] + ', "messages": '
        arguments: list[lua.Argument] = [identity, KEEP_SNAPSHOT, head]
        count = lua.PURGE.run(self._client, self._places(queue, identity), arguments)
        return QueueSnapshot(identity, queue, at, int(count)) if count else None

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
        """Put a snapshot back to the front of its queue; how many messages, 0 if unknown."""
        for snapshot in self.snapshots():
            if snapshot.id == identity:
                places = self._places(snapshot.queue, identity)
                return int(lua.RESTORE.run(self._client, places, [identity]))
        return 0

    def _lists(self, queue: str) -> dict[int, str]:
        return {step: self._keys.queue(queue, suffix) for step, suffix in self._keys.steps.items()}

    def _places(self, queue: str, identity: str) -> list[str]:
        places = [self._keys.snapshots]
        for step, key in self._lists(queue).items():
            places += [key, self._keys.snapshot(identity, step)]
        return places


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _peeked(step: int, raw: bytes) -> Peeked:
    try:
        envelope = message.decode(raw)
    except ValueError:
        return Peeked(None, None, step, None, raw)
    headers = envelope["headers"]
    return Peeked(
        task=headers.get("task"),
        task_id=headers.get("id"),
        priority=step,
        published=message.published(envelope),
        raw=raw,
    )


def _age(peeked: Peeked) -> float | None:
    if peeked.published is None:
        return None
    envelope = message.decode(peeked.raw)
    waited = float(envelope["headers"].get(message.DELAY, 0)) / 1000
    return max(0.0, time.time() - peeked.published - waited)
