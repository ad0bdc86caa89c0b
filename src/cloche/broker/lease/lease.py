"""A lease: one process' claim on the messages it fetched from one server.

All channels of a process to the same server share one. It outlives channels: when Celery
closes a broken connection and opens another, what runs meanwhile stays ours.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Hashable, Iterable

import redis

from cloche.broker import lua
from cloche.broker.connection.commands import send
from cloche.broker.connection.connection import Connection
from cloche.broker.keys import Keys

#: At most so many fields in one command.
BATCH = 1000

logger = logging.getLogger("cloche.transport")

#: Field of an in-flight hash that names the message delivered on its last chance.
SUSPECT = "suspect"


class Acks:
    """Fields of the in-flight hash to delete. Any thread may add; one at a time flushes.

    Bounded by what a consumer may hold: nothing new is fetched while these cannot be sent.
    """

    def __init__(self) -> None:
        self._fields: list[str] = []
        self._oldest = 0.0
        self._doubtful = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, field: object) -> bool:
        return field in self._fields

    @property
    def age(self) -> float:
        """Seconds the oldest has waited; 0 when there is none."""
        return time.monotonic() - self._oldest if self._fields else 0.0

    def add(self, field: str) -> None:
        with self._lock:
            if not self._fields:
                self._oldest = time.monotonic()
            self._fields.append(field)

    def take(self, limit: int = BATCH) -> list[str]:
        """Up to ``limit`` of them, oldest first; whoever takes must send or put back."""
        with self._lock:
            taken, self._fields = self._fields[:limit], self._fields[limit:]
            return taken

    def put_back(self, fields: Iterable[str]) -> None:
        """It is not known whether they arrived. Deleting a field twice does no harm."""
        with self._lock:
            self._fields[:0] = fields
            self._doubtful = True

    def missing(self, sent: int, settled: int) -> int:
        """How many of ``sent`` acknowledgements came too late, given that ``settled`` did not."""
        doubtful, self._doubtful = self._doubtful, False
        return 0 if doubtful else sent - settled

    def clear(self) -> None:
        with self._lock:
            self._fields.clear()

    def flush(self, client: redis.Redis, key: str) -> int:
        """Send all; how many came too late. Raises what redis-py raises: nothing is lost then."""
        late = 0
        while fields := self.take():
            try:
                settled = int(send(client, "HDEL", key, *fields))
            except BaseException:
                self.put_back(fields)
                raise
            late += self.missing(len(fields), settled)
        return late


def tag_of(consumer: str, field: str) -> str:
    """The delivery tag of a message in flight: ``<consumer>/<number>/<queue key>``."""
    return f"{consumer}/{field}"


def field_of(tag: str) -> tuple[str, str]:
    """(consumer, field in its in-flight hash) of a delivery tag."""
    consumer, _, field = tag.partition("/")
    return consumer, field


def key_of(field: str) -> str:
    """The list key a message in flight came from."""
    return field.partition("/")[2]


def number_of(field: str) -> int:
    """The delivery number: fetch order within a consumer. -1 if the field is no message."""
    number, slash, _ = field.partition("/")
    return int(number) if slash else -1


class Lease:
    """What this process holds. ``seconds`` is how long the server waits for a sign of life.

    ``losses`` counts the times the server ended it, ``late`` deliveries that were settled after
    they had been taken from us.
    """

    def __init__(self, keys: Keys, seconds: float) -> None:
        self.keys = keys
        self.seconds = seconds
        self.consumer = ""
        self.held: set[str] = set()
        self.acks = Acks()
        self.losses = 0
        self.late = 0
        self.renewed_at = 0.0
        self.on_lost: list[Callable[[frozenset[str]], None]] = []
        self.pid = os.getpid()
        self._asked: dict[Hashable, range] = {}
        self._orphans: dict[str, weakref.ref[object]] = {}
        self._number = 0
        self._clock_offset = (time.time() - time.monotonic()) * 1000
        self._lock = threading.RLock()

    @property
    def milliseconds(self) -> int:
        return int(self.seconds * 1000)

    @property
    def inflight(self) -> str:
        """The key of our in-flight hash."""
        return self.keys.inflight(self.consumer)

    def join(self, client: redis.Redis) -> None:
        """Take a lease unless we have one. Raises what redis-py raises."""
        with self._lock:
            if not self.consumer:
                consumer = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
                keys = [self.keys.leases, self.keys.inflight(consumer)]
                lua.JOIN.run(client, keys, [consumer, self.milliseconds])
                self.consumer = consumer
                self.renewed_at = time.monotonic()

    def leave(self, client: redis.Redis) -> None:
        """End the lease; what is still held goes back at once. Raises what redis-py raises."""
        with self._lock:
            if self.consumer:
                self.acks.flush(client, self.inflight)
                lua.LEAVE.run(client, [self.keys.leases, self.inflight], [self.consumer])
                self.consumer = ""
                self.held.clear()

    def announce(
        self, client: redis.Redis, queues: Iterable[str], line: Connection | None = None
    ) -> int:
        """Renew; say which queues are waited for. Messages in flight by the server's count.

        Over ``line`` where there is one.

        A lease that ran out is replaced by a new one. Raises what redis-py raises.
        """
        self.join(client)
        consumer = self.consumer
        keys = [self.keys.leases, self.keys.inflight(consumer), self.keys.consumed]
        words: list[lua.Argument] = [consumer, self.milliseconds, *queues]
        if line is None:
            reply = lua.RENEW.run(client, keys, words)
        else:
            reply = lua.RENEW.call(line, keys, words)
        if reply is None:
            self.lose(consumer)
            return self.announce(client, queues, line)
        self.renewed_at = time.monotonic()
        self._clock_offset = int(reply[0]) - self.renewed_at * 1000
        return int(reply[1])

    def wait_if_doubtful(self, seconds: float = 1.0) -> None:
        """Before work begins: if the process slept past its lease, let the keeper ask first."""
        until = time.monotonic() + seconds
        while time.monotonic() - self.renewed_at > self.seconds and time.monotonic() < until:
            time.sleep(0.002)

    def server_time(self) -> int:
        """The server's clock, Unix ms, as of the last renewal."""
        return int(self._clock_offset + time.monotonic() * 1000)

    def ask(self, asker: Hashable, count: int) -> int:
        """Reserve ``count`` delivery numbers for a fetch on its way; the first of them."""
        with self._lock:
            first = self._number
            self._number += count
            self._asked[asker] = range(first, self._number)
            return first

    def answered(self, asker: Hashable, fields: Iterable[str] = ()) -> None:
        """The fetch brought ``fields``, or will bring nothing any more."""
        with self._lock:
            self.held.update(fields)
            self._asked.pop(asker, None)

    def unknown(self, fields: Iterable[str]) -> list[str]:
        """Those of our hash's ``fields`` that nobody here knows: a fetch's reply was lost."""
        with self._lock:
            return [
                field
                for field in fields
                if number_of(field) >= 0
                and field not in self.held
                and field not in self.acks
                and not any(number_of(field) in numbers for numbers in self._asked.values())
            ]

    def ack(self, tag: str) -> bool:
        """Note that the message is done with; False if it was no longer ours."""
        consumer, field = field_of(tag)
        with self._lock:
            ours = consumer == self.consumer and field in self.held
            if ours:
                self.held.discard(field)
                self._orphans.pop(field, None)
                self.acks.add(field)
        if not ours:
            self.tell_late(1)
        return ours

    def holds(self, tag: str) -> bool:
        """Whether the message is still ours."""
        consumer, field = field_of(tag)
        return consumer == self.consumer and field in self.held

    def let_go(self, fields: Iterable[str]) -> None:
        """Forget messages that have been moved elsewhere."""
        with self._lock:
            for field in fields:
                self.held.discard(field)
                self._orphans.pop(field, None)

    def adopt(self, tag: str, message: object) -> None:
        """Keep a message of a closed channel as long as somebody in this process has it."""
        with self._lock:
            if self.holds(tag):
                self._orphans[field_of(tag)[1]] = weakref.ref(message)

    @property
    def orphans(self) -> int:
        """How many messages of closed channels somebody in this process still has."""
        return len(self._orphans)

    def abandoned(self) -> list[str]:
        """Adopted messages nobody has any more: unstarted work the consumer dropped."""
        with self._lock:
            return [field for field, message in self._orphans.items() if message() is None]

    def lose(self, consumer: str) -> None:
        """The server ended ``consumer``'s lease: what it held is somebody else's now."""
        with self._lock:
            if consumer != self.consumer:
                return
            taken = frozenset(tag_of(consumer, field) for field in self.held)
            self.consumer = ""
            self.held.clear()
            unsent = len(self.acks)
            self.acks.clear()
            self._asked.clear()
            self._orphans.clear()
            self.losses += 1
        logger.error(
            "lease lost: no sign of life for %.0f s; %d deliveries went back to their queues "
            "and will run elsewhere",
            self.seconds,
            len(taken),
        )
        for told in self.on_lost:
            told(taken)
        self.tell_late(unsent)
        self.renewed_at = time.monotonic()  # no doubt left

    def tell_late(self, count: int) -> None:
        """Log and count deliveries that were settled after they were taken from us."""
        if count:
            self.late += count
            logger.warning("fenced: %d deliveries settled after their lease was lost", count)
