"""The thread that keeps a lease, and does the chores of all consumers when it is the leader.

It has a connection of its own and needs nothing of the event loop: a blocked loop keeps its
lease.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

import redis

from cloche.broker import lua
from cloche.broker.connection.commands import send
from cloche.broker.connection.connection import Connection
from cloche.broker.connection.outage import ERRORS, Outage
from cloche.broker.lease.lease import Lease, key_of, number_of
from cloche.broker.lease.reaper import Reaper

logger = logging.getLogger("cloche.transport")

#: Seconds between rounds of the leader while it finds something to do: what a stock producer's
#: message may wait, or a message with a short delay.
LEADER_PERIOD = 0.15

#: The same when it found nothing for BUSY_SECONDS.
IDLE_PERIOD = 0.5
BUSY_SECONDS = 30

#: Seconds between attempts of the others to become leader: at least so many, and together with the
#: renewal of the lease where that comes later. A lease outlives a leader by far longer.
FOLLOWER_PERIOD = 2.0

#: Seconds without a round after which another becomes leader.
TERM = 1.5

#: Seconds between rounds at least, unless more is due than one round promotes.
LEAST_PAUSE = 0.01

#: Seconds a leader waits before it calls anybody dead, if it could not reach the server itself or
#: has just begun. After an outage of the server all leases have run out, of consumers that are
#: alive: each is back after its longest pause (outage.py).
GRACE = 3.0

#: Due messages promoted in one call; while there are more, the next call follows at once.
PROMOTED = 500

#: Seconds after which a queue nobody consumes is woken no more.
FORGET_QUEUE = 600

#: Seconds an acknowledgement may wait for the event loop before the keeper sends it.
LATE_ACK = 0.05


class LeaseKeeper:
    """Started once per lease; ``queues`` tells what the process consumes now.

    ``tell`` is the :class:`Reaper`'s.
    """

    def __init__(
        self,
        lease: Lease,
        client: redis.Redis,
        queues: Callable[[], list[str]],
        max_deliveries: int,
        tell: Callable[[bytes, Exception], None],
    ) -> None:
        self._lease = lease
        self._client = client
        self._line = Connection(lambda: client)
        self._queues = queues
        self._reaper = Reaper(client, lease.keys, max_deliveries, tell)
        self._outage = Outage("lease renewal", patient=True)
        self._stopping = threading.Event()
        self._renew_at = 0.0
        self._tick_at = 0.0
        self._busy_until = 0.0
        self._contact_at = -math.inf
        self._judges_from = 0.0
        self._unknown: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="cloche-lease", daemon=True)

    def start(self) -> None:
        self._renew_at = time.monotonic() + self._period
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until it has ended."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def leave(self) -> None:
        """Give everything back and end the lease. Raises what redis-py raises."""
        lease = self._lease
        try:
            if lease.consumer:
                lease.acks.flush(self._client, lease.inflight)
                names = send(self._client, "HKEYS", lease.inflight)
                self._requeue([n.decode() for n in names if number_of(n.decode()) >= 0])
                send(self._client, "DEL", lease.inflight)
                lease.leave(self._client)
        finally:
            self._line.close()
            self._client.connection_pool.disconnect()

    @property
    def _period(self) -> float:
        return self._lease.seconds / 6

    def _run(self) -> None:
        while not self._stopping.wait(self._pause()):
            if self._outage.pausing:
                continue
            try:
                self._round()
                self._outage.over()
                self._contact_at = time.monotonic()
            except ERRORS as error:
                self._contact_at = -math.inf
                self._outage.failed(error)
                self._client.connection_pool.disconnect()
            except Exception:
                # Whatever happens, the lease must be renewed.
                logger.exception("a chore failed")
                self._tick_at = time.monotonic() + FOLLOWER_PERIOD

    def _pause(self) -> float:
        if self._outage.lasting:
            return 0.1
        return max(0.0, min(self._renew_at, self._tick_at) - time.monotonic())

    def _round(self) -> None:
        if time.monotonic() >= self._renew_at:
            self._renew()
        if self._lease.acks.age > LATE_ACK and self._lease.consumer:
            self._lease.tell_late(self._lease.acks.flush(self._client, self._lease.inflight))
        if time.monotonic() >= self._tick_at:
            self._tick()

    def _renew(self) -> None:
        lease = self._lease
        count = lease.announce(self._client, self._queues(), self._line)
        self._renew_at = time.monotonic() + self._period
        self._return_abandoned()
        if count > len(lease.held) + len(lease.acks) or self._unknown:
            self._return_unknown()

    def _return_abandoned(self) -> None:
        fields = self._lease.abandoned()
        self._requeue(fields)
        self._lease.let_go(fields)

    def _return_unknown(self) -> None:
        """Return what the server gave us and we never heard of, if that is so twice in a row."""
        inflight = self._lease.inflight
        fields = [name.decode() for name in send(self._client, "HKEYS", inflight)]
        unknown = set(self._lease.unknown(fields))
        sure = unknown & self._unknown
        if sure:
            self._requeue(list(sure))
            logger.warning(
                "%d messages whose delivery was cut went back to their queues", len(sure)
            )
        self._unknown = unknown - sure
        if self._unknown:
            self._renew_at = min(self._renew_at, time.monotonic() + min(1.0, self._period))

    def _requeue(self, fields: list[str]) -> None:
        moves: list[str] = []
        for field in sorted(fields, key=number_of, reverse=True):
            moves += [field, key_of(field), ""]
        if moves:
            lua.REQUEUE.run(self._client, [self._lease.inflight], ["RPUSH", *moves])

    def _judges(self) -> bool:
        """Whether we have been in touch with the server for long enough to know who is dead."""
        now = time.monotonic()
        if now - self._contact_at > max(FOLLOWER_PERIOD, self._period) + TERM:
            self._judges_from = now + GRACE
        return now >= self._judges_from

    def _tick(self) -> None:
        lease, keys = self._lease, self._lease.keys
        reply = lua.TICK.call(
            self._line,
            [keys.leader, keys.leases, keys.reaping, keys.delaying, keys.consumed, keys.paused],
            [
                lease.consumer,
                int(TERM * 1000),
                keys.prefix,
                PROMOTED,
                FORGET_QUEUE * 1000,
                lease.server_time() if self._judges() else 0,
                *keys.suffixes,
            ],
        )
        if reply is None:
            self._tick_at = max(time.monotonic() + FOLLOWER_PERIOD, self._renew_at)
            return
        promoted, woken, next_due, *dead = reply
        now = time.monotonic()
        if promoted or woken:
            self._busy_until = now + BUSY_SECONDS
        pause = LEADER_PERIOD if now < self._busy_until else IDLE_PERIOD
        if next_due >= 0:
            pause = min(pause, next_due / 1000)
        self._tick_at = now + (0.0 if promoted >= PROMOTED else max(pause, LEAST_PAUSE))
        for consumer in dead:
            self._reaper.reap(consumer.decode())
