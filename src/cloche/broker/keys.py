"""The names of the transport's own keys. All begin with ``<global_keyprefix>cloche:``."""

from __future__ import annotations

from dataclasses import dataclass

#: Queue length shares; kombu's default (kombu/transport/redis.py, PRIORITY_STEPS).
PRIORITY_STEPS = (0, 3, 6, 9)

#: Between a queue's name and its priority (kombu/transport/redis.py, Channel.sep).
SEPARATOR = "\x06\x16"


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names below ``prefix``, kombu's ``global_keyprefix`` ("" by default).

    ``suffixes`` are what kombu appends to a queue's name for each priority step.
    """

    prefix: str = ""
    suffixes: tuple[str, ...] = tuple(
        f"{SEPARATOR}{step}" if step else "" for step in PRIORITY_STEPS
    )

    @property
    def steps(self) -> dict[int, str]:
        """Priority step -> suffix, the most urgent first."""
        return {int(suffix[2:] or 0): suffix for suffix in self.suffixes}

    @property
    def own(self) -> str:
        """The prefix of all keys that are ours."""
        return f"{self.prefix}cloche:"

    @property
    def leases(self) -> str:
        """Sorted set: consumer -> end of its lease, server time in ms."""
        return f"{self.own}leases"

    def inflight(self, consumer: str) -> str:
        """Hash: ``<number>/<queue key>`` -> message."""
        return f"{self.own}inflight:{consumer}"

    @property
    def reaping(self) -> str:
        """Set of dead consumers whose messages are being returned."""
        return f"{self.own}reaping"

    def reaped(self, consumer: str) -> str:
        """The in-flight hash of a dead consumer, taken over."""
        return f"{self.own}reaping:{consumer}"

    @property
    def leader(self) -> str:
        """String: the consumer that does the chores now."""
        return f"{self.own}leader"

    @property
    def consumed(self) -> str:
        """Sorted set: queue -> when a consumer of ours last said it waits on it."""
        return f"{self.own}queues"

    @property
    def paused(self) -> str:
        return f"{self.own}paused"

    def wakeup(self, queue: str) -> str:
        """List of at most one element: something to fetch in this queue."""
        return f"{self.own}bell:{queue}"

    @property
    def delaying(self) -> str:
        """Set of queues with delayed messages."""
        return f"{self.own}delaying"

    def delayed(self, queue: str) -> str:
        """Sorted set: id -> due, server time in ms."""
        return f"{self.own}delayed:{queue}"

    def delayed_messages(self, queue: str) -> str:
        """Hash: id -> ``<priority suffix>:<message>``."""
        return f"{self.own}delayed-messages:{queue}"

    def batch(self, identity: str) -> str:
        """String: a batch of published messages that has arrived."""
        return f"{self.own}batch:{identity}"

    @property
    def probe(self) -> str:
        """String, expires at once: whether the server takes writes."""
        return f"{self.own}probe"

    @property
    def snapshots(self) -> str:
        """Hash: id of a purge -> what it set aside (JSON)."""
        return f"{self.own}snapshots"

    def snapshot(self, identity: str, part: int | str) -> str:
        """What a purge set aside: the list of one priority, or what was delayed (zset, hash)."""
        return f"{self.own}snapshot:{identity}:{part}"

    @property
    def dead(self) -> str:
        """Hash: id -> dead letter (JSON)."""
        return f"{self.own}dead"

    @property
    def dead_index(self) -> str:
        """Sorted set: id -> when, server time in ms."""
        return f"{self.own}dead-index"

    def queue(self, name: str, suffix: str = "") -> str:
        """The list kombu keeps a queue's messages of one priority in."""
        return f"{self.prefix}{name}{suffix}"

    def queue_of(self, key: str) -> str:
        """The queue's name within a list key made by :meth:`queue`."""
        name = key.removeprefix(self.prefix)
        for suffix in self.suffixes:
            if suffix and name.endswith(suffix):
                return name.removesuffix(suffix)
        return name
