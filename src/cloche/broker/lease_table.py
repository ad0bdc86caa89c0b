"""The leases of this process: one per server, shared by its channels, kept by one thread each."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any

import redis

from cloche.broker.lease import Lease
from cloche.broker.lease_keeper import LeaseKeeper
from cloche.broker.lease_loss import drop_unstarted
from cloche.broker.outage import ERRORS

logger = logging.getLogger("cloche.transport")


@dataclass
class _Entry:
    lease: Lease
    keeper: LeaseKeeper
    channels: set[Any] = field(default_factory=set)

    def queues(self) -> list[str]:
        return sorted({queue for channel in list(self.channels) for queue in channel.consumed})


_entries: dict[object, _Entry] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    # Threads do not survive a fork and what the parent holds is not ours.
    global _lock
    _lock = threading.Lock()
    _entries.clear()


os.register_at_fork(after_in_child=_after_fork)


def leases() -> tuple[Lease, ...]:
    """All leases of this process."""
    with _lock:
        return tuple(entry.lease for entry in _entries.values())


def lease(channel: Any) -> Lease:
    """The lease on the channel's server; its keeper is started with the first channel."""
    with _lock:
        server = _server(channel)
        entry = _entries.get(server)
        if entry is None:
            entry = _entries[server] = _new(channel)
            entry.lease.join(channel.own)
            entry.keeper.start()
        entry.channels.add(channel)
        return entry.lease


def _new(channel: Any) -> _Entry:
    claim = Lease(channel.keys, float(channel.lease))
    pool = channel._get_pool()
    # It says something every few seconds anyway, and knows what to do when that fails.
    pool.connection_kwargs["health_check_interval"] = 0
    client = redis.Redis(connection_pool=pool)
    entry: _Entry
    keeper = LeaseKeeper(claim, client, lambda: entry.queues(), channel.max_deliveries)
    claim.on_lost.append(drop_unstarted)
    entry = _Entry(claim, keeper)
    return entry


def _server(channel: Any) -> object:
    found = channel.pool.connection_kwargs
    names = ("host", "port", "path", "db", "username")
    master = getattr(channel, "master_name", None)
    return (os.getpid(), channel.keys, master, *(found.get(name) for name in names))


def release(channel: Any, *, orphaned: bool = False) -> None:
    """The channel closed. With the last one the lease ends, unless work is going on.

    ``orphaned``: it closed because its connection broke, and another follows.
    """
    with _lock:
        for server, entry in list(_entries.items()):
            if channel in entry.channels:
                entry.channels.discard(channel)
                if not entry.channels and not orphaned:
                    del _entries[server]
                    _end(entry)


def _end(entry: _Entry) -> None:
    entry.keeper.stop()
    try:
        entry.keeper.leave()
    except ERRORS as error:
        logger.warning("the lease was left to run out: %s", error)
