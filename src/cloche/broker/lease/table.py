"""The leases of this process: one per server, shared by its channels, kept by one thread each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis

from cloche.broker.connection.outage import ERRORS
from cloche.broker.lease.keeper import LeaseKeeper
from cloche.broker.lease.lease import Lease
from cloche.process_local import ProcessLocal

logger = logging.getLogger("cloche.transport")


@dataclass
class _Entry:
    lease: Lease
    keeper: LeaseKeeper
    channels: set[Any] = field(default_factory=set)

    def queues(self) -> list[str]:
        return sorted({queue for channel in list(self.channels) for queue in channel.consumed})

    def tell(self, raw: bytes, error: Exception) -> None:
        """Have one of the channels tell that a task will not run, if there is a worker here."""
        for channel in list(self.channels):
            if channel.worker is not None:
                channel.tell(raw, error)
                return


class _Table:
    def __init__(self) -> None:
        self.entries: dict[object, _Entry] = {}
        self.lock = threading.Lock()


#: Called with the tags of a lost lease, of each lease that is taken from now on.
on_lost: list[Callable[[frozenset[str]], None]] = []

# Threads do not survive a fork and what the parent holds is not the child's.
_table = ProcessLocal(_Table)


def leases() -> tuple[Lease, ...]:
    """All leases of this process."""
    table = _table.get()
    with table.lock:
        return tuple(entry.lease for entry in table.entries.values())


def lease(channel: Any) -> Lease:
    """The lease on the channel's server; its keeper is started with the first channel."""
    table = _table.get()
    with table.lock:
        server = _server(channel)
        entry = table.entries.get(server)
        if entry is None:
            entry = table.entries[server] = _new(channel)
            entry.lease.join(channel.own)
            entry.keeper.start()
        entry.channels.add(channel)
        return entry.lease


def _new(channel: Any) -> _Entry:
    fresh = Lease(channel.keys, float(channel.lease))
    pool = channel._get_pool()
    # It says something every few seconds anyway, and knows what to do when that fails.
    pool.connection_kwargs["health_check_interval"] = 0
    client = redis.Redis(connection_pool=pool)
    entry: _Entry
    keeper = LeaseKeeper(
        fresh,
        client,
        lambda: entry.queues(),
        channel.max_deliveries,
        lambda raw, error: entry.tell(raw, error),
    )
    fresh.on_lost.extend(on_lost)
    entry = _Entry(fresh, keeper)
    return entry


def _server(channel: Any) -> object:
    found = channel.pool.connection_kwargs
    names = ("host", "port", "path", "db", "username")
    master = getattr(channel, "master_name", None)
    return (channel.keys, master, *(found.get(name) for name in names))


def release(channel: Any, *, orphaned: bool = False) -> None:
    """The channel closed. With the last one the lease ends, unless work is going on.

    ``orphaned``: it closed because its connection broke, and another follows.
    """
    table = _table.get()
    with table.lock:
        for server, entry in list(table.entries.items()):
            if channel in entry.channels:
                entry.channels.discard(channel)
                if not entry.channels and not orphaned:
                    del table.entries[server]
                    _end(entry)


def _end(entry: _Entry) -> None:
    entry.keeper.stop()
    try:
        entry.keeper.leave()
    except ERRORS as error:
        logger.warning("the lease was left to run out: %s", error)
