"""One atomic fetch: its command and its reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from cloche.broker import lua
from cloche.broker.connection.commands import send
from cloche.broker.keys import Keys


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message now in flight: its field in our in-flight hash, its queue, its text."""

    field: str
    queue: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Up to ``wanted`` messages from ``queues``, in that order; ``acks`` go along.

    ``shared``: every queue gets its part of ``wanted`` before one gets more.
    """

    keys: Keys
    consumer: str
    first: int
    wanted: int
    queues: Sequence[str]
    acks: Sequence[str] = ()
    shared: bool = True

    def run(self, client: redis.Redis) -> list[Any]:
        """Send it and wait for the reply. Raises what redis-py raises."""
        try:
            reply: list[Any] = send(client, *self.command())
        except redis.exceptions.NoScriptError:
            reply = send(client, *self.command(text=True))
        return reply

    def command(self, *, text: bool = False) -> list[lua.Argument]:
        keys = self.keys
        lists: list[lua.Argument] = []
        wakeups = [keys.wakeup(queue) for queue in self.queues]
        for items in (self.acks, self.queues, wakeups, keys.suffixes):
            lists += [len(items), *items]
        arguments = [self.consumer, self.first, self.wanted, int(self.shared), *lists, keys.prefix]
        return lua.FETCH.command(
            [keys.leases, keys.inflight(self.consumer), keys.paused], arguments, text=text
        )

    def read(self, reply: Sequence[Any]) -> list[Fetched]:
        """The messages in the script's reply; its first item is how many were settled."""
        fetched = []
        for number, at in enumerate(range(1, len(reply), 3), self.first):
            queue = self.queues[int(reply[at]) - 1]
            key = self.keys.queue(queue, self.keys.suffixes[int(reply[at + 1]) - 1])
            fetched.append(Fetched(f"{number}/{key}", queue, reply[at + 2]))
        return fetched
