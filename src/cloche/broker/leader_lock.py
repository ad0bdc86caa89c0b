"""The leader lock of one job that only one process of many may do: a lock that ends by itself.

On Redis and Valkey, through whichever transport. The server checks it with everything that is done
by it (``lua/leader_lock_send.lua``): a process that was stopped and goes on does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass

import redis
from kombu import Connection
from kombu.transport import redis as stock

from cloche.broker import lua
from cloche.broker.connection.outage import ERRORS
from cloche.broker.keys import Keys

#: Seconds between two tries of somebody who waits for it.
TRY_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class LockServer:
    """A Redis or Valkey behind a connection of kombu's, and the names of our keys on it."""

    client: redis.Redis
    keys: Keys


def on_redis(connection: Connection) -> bool:
    """Whether it leads to Redis or Valkey; does not connect."""
    # Only kombu's virtual transports have it; AMQP's channels belong to its driver.
    channel = getattr(connection.transport, "Channel", None)
    return isinstance(channel, type) and issubclass(channel, stock.Channel)


def server_of(connection: Connection) -> LockServer | None:
    """The server of ``connection``; None for another kind of broker.

    Connects. Raises the connection's own errors.
    """
    channel = connection.default_channel
    if not isinstance(channel, stock.Channel):
        return None
    client = redis.Redis(connection_pool=channel.pool)
    return LockServer(client, Keys(channel.global_keyprefix))


class LeaderLock:
    """The lock ``name`` on a server. ``seconds`` without a sign of life and it is free again."""

    def __init__(self, server: LockServer, name: str, seconds: float) -> None:
        self.key = f"{server.keys.own}{name}"
        self.me = f"pid {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
        self.seconds = seconds
        #: How often it was taken: grows when somebody else may have had it meanwhile.
        self.taken = 0
        self._client = server.client
        self._holder = ""
        self._until = 0.0
        #: Monotonic time of the last answer of the server.
        self.reached = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloche-leader-lock", daemon=True)

    @property
    def held(self) -> bool:
        """Whether it is ours as far as we know."""
        return time.monotonic() < self._until

    @property
    def holder(self) -> str:
        """Who had it when we last asked."""
        return self._holder

    def start(self) -> None:
        """Try for it, and keep it, in a thread; returns after the first try."""
        self._try()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self.seconds)
        self._until = 0.0
        with contextlib.suppress(*ERRORS):  # it ends by itself
            lua.LEADER_LOCK_DROP.run(self._client, [self.key], [self.me])

    def confirm(self) -> bool:
        """Ask the server whether it is ours. Raises what redis-py raises."""
        found = self._client.get(self.key)
        return found == self.me.encode()

    def lost(self) -> None:
        """The server said that somebody else has it, or nobody."""
        self._until = 0.0

    def _run(self) -> None:
        while not self._stopping.wait(self._pause()):
            self._try()

    def _pause(self) -> float:
        return self.seconds / 5 if self.held else min(TRY_EVERY, self.seconds / 5)

    def _try(self) -> None:
        asked, had = time.monotonic(), self.held
        try:
            words: list[str | bytes | int] = [self.me, int(self.seconds * 1000)]
            reply = lua.LEADER_LOCK.run(self._client, [self.key], words)
        except ERRORS:
            return  # who has it is told of the outage by what it sends
        self.reached = asked
        self._holder = reply.decode() if isinstance(reply, bytes) else str(reply)
        if self._holder != self.me:
            self._until = 0.0
            return
        if not had:
            self.taken += 1
        self._until = asked + self.seconds


def holder_of(server: LockServer, name: str) -> str | None:
    """Who has the leader lock ``name`` now. Raises what redis-py raises."""
    found = server.client.get(f"{server.keys.own}{name}")
    return found.decode() if isinstance(found, bytes) else found
