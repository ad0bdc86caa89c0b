"""The transport of ``cloche+redis://``, ``cloche+rediss://`` and ``cloche+sentinel://`` URLs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import redis
from kombu.transport import redis as stock

from cloche.broker import celery_hooks
from cloche.broker.channel import Channel, SentinelChannel
from cloche.broker.connection import url as transport_url
from cloche.broker.hub_driver import Poller
from cloche.errors import BrokerError, BrokerFault

#: How a server begins that refuses writes for now (server.c, createSharedObjects).
_NO_WRITES = ("OOM", "MISCONF", "NOREPLICAS", "MASTERDOWN", "LOADING")


#: Timers of kombu's that call what does nothing here, or what the poller does by itself when the
#: loop turns anyway: one of them would wake an idle worker each second.
_NEEDLESS_TIMERS = (
    "_restore_messages_tref",
    "_brpop_health_tref",
    "_binding_expiry_tref",
    "_subclient_health_tref",
)


class Transport(stock.Transport):
    """Redis and Valkey without loss; see docs/transport.md.

    ``driver_type`` stays "redis": Celery switches mingle, gossip and worker_disable_prefetch
    on by it.
    """

    Channel = Channel

    # A master that became a replica, or a worker that starts before the failover is over:
    # a fault that passes, so Celery connects again and publishers retry.
    connection_errors = (*stock.Transport.connection_errors, redis.exceptions.ReadOnlyError)

    #: Set by an event loop; see :meth:`Consuming.wake_later`.
    wake_later: Callable[[float], Any] | None = None

    #: Set by an event loop: has it call a function, from any thread.
    call_soon: Callable[[Callable[[], None]], Any] | None = None

    def __init__(self, client: Any, **kwargs: Any) -> None:
        celery_hooks.install()
        transport_url.check(client)
        if transport_url.scheme_of(client).startswith("sentinel"):
            self.Channel = SentinelChannel
            self.default_port = 26379
        super().__init__(client, **kwargs)
        self.cycle = Poller()

    def establish_connection(self) -> Any:
        """Connect.

        Raises BrokerError for a Redis Cluster. For a replica ReadOnlyError and, to a consumer,
        for a server that takes no writes ConnectionError: Celery tries again, with growing pauses.
        """
        celery_hooks.extend_control()
        connection = super().establish_connection()
        self._check_writes()
        info = self._info()
        if str(info.get("cluster_enabled")) == "1":
            raise BrokerError(
                "This server is part of a Redis Cluster, which cannot carry this transport.",
                fault=BrokerFault.OTHER,
                why="Moving a message between keys must be atomic; a cluster spreads keys.",
                fix="Use a single server, or Sentinel for failover: cloche+sentinel://…",
            )
        if info.get("role") == "slave":
            master = f"{info.get('master_host')}:{info.get('master_port')}"
            raise redis.exceptions.ReadOnlyError(f"this server is a replica of {master}")
        return connection

    def _check_writes(self) -> None:
        """Celery's worker declares queues as it starts, and ends where that is refused.

        A publisher is told by its publish, at once: only a consumer asks for heartbeats.
        """
        if not self.client.heartbeat:
            return
        channel = self.channels[0]
        try:
            channel.own.set(channel.keys.probe, "", px=1)
        except redis.exceptions.RedisError as error:
            code = getattr(error, "status_code", None) or ""
            if f"{code} {error}".lstrip().startswith(_NO_WRITES):
                raise redis.exceptions.ConnectionError(f"it takes no writes: {error}") from error

    def _info(self) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = self.channels[0].own.info()
        except redis.exceptions.RedisError:
            return {}  # an ACL user without INFO, or a publisher whose server is away
        return found

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Be driven by Celery's event loop."""
        super().register_with_event_loop(connection, loop)
        for name in _NEEDLESS_TIMERS:
            entry = getattr(self.cycle, name, None)
            if entry is not None:
                entry.cancel()
        self.wake_later = lambda seconds: loop.call_later(seconds, int)
        self.call_soon = loop.call_soon

    def on_readable(self, fileno: int) -> None:
        """Called by an event loop. That a reply brought no message concerns no loop."""
        with contextlib.suppress(stock.Empty):
            super().on_readable(fileno)

    def _collect(self, connection: Any) -> None:
        """Called by kombu after a connection error, instead of closing in good order."""
        for channel in {*self.channels, *self._avail_channels}:
            channel.orphan()
        self.channels.clear()
        self._avail_channels.clear()
        self.cycle.close()
