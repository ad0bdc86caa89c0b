"""kombu's Redis channel with another way of delivering.

Kept from kombu: bindings, fanout, priorities, key prefix, message format. Replaced: fetching
(atomic, in batches), acknowledging (in batches), what becomes of unsettled messages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import orjson
import redis
import redis.sentinel
from kombu import pools
from kombu.transport import redis as stock

from cloche.broker import lua, message, refused
from cloche.broker.connection import url as transport_url
from cloche.broker.connection.address import fitting
from cloche.broker.connection.commands import send
from cloche.broker.connection.connection import Connections
from cloche.broker.connection.outage import ERRORS
from cloche.broker.consumer import ConsumingChannel
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.events import EventWriter
from cloche.broker.keys import Keys
from cloche.broker.lease import table as lease_table
from cloche.broker.lease.fetch import Fetch, Fetched
from cloche.broker.lease.lease import Lease, field_of, key_of, tag_of
from cloche.broker.loop_driver import Deliver, LoopDriver
from cloche.broker.message import AT, OWN, Message, encode, undisturbed
from cloche.broker.publish.outbox import Outbox, SpoolingOutbox
from cloche.broker.publish.template import capture_of
from cloche.broker.qos import QoS
from cloche.broker.queues import Queues

#: The routing key of the event that an idle worker sends (celery/worker/heartbeat.py).
HEARTBEAT = "worker.heartbeat"

#: Connections of a channel where kombu's pools have no limit.
_LINES = 10

logger = logging.getLogger("cloche.transport")


def patient_client(make: Any, *args: Any, **kwargs: Any) -> Any:
    """A client that may be made while the server is away; kombu pings with each new channel."""
    client = make(*args, **kwargs)
    ping = client.ping

    def patient() -> bool:
        try:
            return bool(ping())
        except ERRORS:
            return False

    client.ping = patient
    return client


class Channel(ConsumingChannel):
    """A channel of :class:`cloche.broker.transport.Transport`.

    Transport options besides kombu's: ``lease`` (s), ``max_deliveries`` (deaths of consumers
    before a message is a dead letter), ``max_message_bytes`` (0: as many as the server takes),
    ``publish_on_outage`` ("raise" or "spool"), ``spool_directory`` and ``direct_path`` (whether
    an asyncio worker may fetch in its own loop, and others receive plain messages themselves;
    True).
    """

    QoS = QoS
    Message = Message

    #: For those who receive messages in Celery's consumer's place.
    read = staticmethod(undisturbed)

    lease = 30.0
    max_deliveries = 3
    max_message_bytes = 0
    publish_on_outage = "raise"
    spool_directory: str | None = None
    direct_path = True
    socket_timeout = 5
    socket_connect_timeout = 5
    socket_keepalive = True
    health_check_interval = 5
    from_transport_options = (
        *stock.Channel.from_transport_options,
        "lease",
        "max_deliveries",
        "max_message_bytes",
        "publish_on_outage",
        "spool_directory",
        "direct_path",
    )

    #: Celery's consumer whose tasks come from here, if one does.
    worker: Any = None

    _own: redis.Redis | None = None
    _own_lease: Lease | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.inbox: deque[Fetched] = deque()
        self.no_ack_queues: set[str] = set()
        super().__init__(*args, **kwargs)
        suffixes = tuple(self._q_for_pri("", step) for step in self.priority_steps)
        self.keys = Keys(self.global_keyprefix, suffixes)
        self.lines = Connections(lambda: self.own, self._most_lines)
        self.outbox = self._new_outbox()
        self.start_consuming()

    @property
    def waiting(self) -> int:
        """Messages fetched and not yet delivered."""
        return len(self.inbox)

    @property
    def own(self) -> redis.Redis:
        """A client that takes key names as they are. Making one takes 100 µs: it is kept."""
        if self.closed and self._own is not None:
            return self._own  # settling what an orphaned channel delivered
        pool = self.pool
        if self._own is None or self._own.connection_pool is not pool:
            self._own = redis.Redis(connection_pool=pool)
        return self._own

    # -- connection parameters

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        client = self.connection.client
        if transport_url.uses_tls(client):
            self.connection_class = self.connection_class_ssl
        elif transport_url.uses_socket(client):
            self.connection_class = redis.UnixDomainSocketConnection
        found: dict[str, Any] = super()._connparams(asynchronous)
        return fitting(
            {**found, **transport_url.set_beside(client), **transport_url.parameters(client)}
        )

    # -- publishing

    def _put_fanout(
        self, exchange: str, message: message.Envelope, routing_key: str, **kwargs: Any
    ) -> None:
        capture = capture_of(self)
        if capture is not None and capture.broadcasts is not None:
            topics = [str(topic) for topic in self._get_publish_topics(exchange, routing_key)]
            capture.broadcasts.append((topics, message))
            return
        if kwargs.get("_publish_batch") is None and routing_key == HEARTBEAT:
            self._publish_heartbeat(exchange, message, routing_key)
            return
        super()._put_fanout(exchange, message, routing_key, **kwargs)

    def _publish_heartbeat(
        self, exchange: str, message: message.Envelope, routing_key: str
    ) -> None:
        """As kombu publishes a broadcast, without making a client for it."""
        try:
            text = orjson.dumps(message).decode()
        except TypeError:  # what only kombu's JSON can tell, such as a lone surrogate
            text = encode(message)
        topics = self._get_publish_topics(exchange, routing_key)
        commands = [["PUBLISH", f"{self.keys.prefix}{topic}", text] for topic in topics]
        for reply in self.lines.send_all(commands):
            if isinstance(reply, Exception):
                raise reply

    # -- publishing while the server is away

    @property
    def spools(self) -> bool:
        """Whether messages are kept in a file while the server is away."""
        return self.publish_on_outage == "spool"

    def _most_lines(self) -> int:
        """Connections that threads may publish on at once: as many as kombu's pools hold."""
        limit: int = pools.get_limit() or _LINES
        return max(1, min(limit, int(self.pool.max_connections) - 1))

    def _new_outbox(self) -> Outbox | SpoolingOutbox:
        def client() -> redis.Redis:
            return self.own

        if not self.spools:
            return Outbox(client, self.lines, self.keys)
        found = self.pool.connection_kwargs
        server = " ".join(str(found.get(name)) for name in ("host", "port", "path", "db"))
        return SpoolingOutbox(client, self.keys, self.spool_directory, server)

    def _get_client(self) -> Any:
        found = super()._get_client()
        return partial(patient_client, found) if self.spools else found

    def _size(self, queue: str) -> int:
        try:
            # What is put aside lies in the queue, as it would with a stock producer.
            return int(super()._size(queue)) + self._delayed(queue)
        except ERRORS:
            # Declaring a queue asks for its length: kombu/transport/virtual/base.py.
            if self.spools and not self.has_lease:
                return 0
            raise

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return bool(super()._has_queue(queue, **kwargs) or self._delayed(queue))

    def _purge(self, queue: str) -> int:
        return Queues(self.own, self.keys).discard(queue)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._purge(queue)
        super()._delete(queue, *args, **kwargs)

    def _delayed(self, queue: str) -> int:
        return int(send(self.own, "ZCARD", self.keys.delayed(queue)))

    def _queue_bind(self, *args: Any) -> None:
        try:
            super()._queue_bind(*args)
        except ERRORS:
            # Tasks for a queue are sent to it by name; no binding is looked up.
            if not self.spools or self.has_lease:
                raise

    # -- the lease

    @property
    def has_lease(self) -> bool:
        """Whether this channel ever held a message."""
        return self._own_lease is not None

    @property
    def own_lease(self) -> Lease:
        """This process' lease on the server; taken on first use."""
        if self._own_lease is None:
            self._own_lease = lease_table.lease(self)
        if not self._own_lease.consumer:
            self._own_lease.join(self.own)
        return self._own_lease

    def wait_if_doubtful(self) -> None:
        """Before work begins; see :meth:`Lease.wait_if_doubtful`."""
        if self._own_lease is not None:
            self._own_lease.wait_if_doubtful()

    def give_back(self, tags: Iterable[str], *, mark: bool = True, last: bool = False) -> None:
        """Put messages in flight back to the front of their queues, marked redelivered.

        Without ``mark`` they go as they came: nobody has seen them. ``last``: to the back.
        """
        lease = self.own_lease
        fields = [field_of(tag)[1] for tag in tags if lease.holds(tag)]
        # The first fetched goes last, so that it is the next to be popped.
        fields.sort(key=lambda field: int(field.partition("/")[0]), reverse=True)
        moves: list[str] = []
        for field, raw in zip(fields, self.texts(lease, fields), strict=True):
            if raw is not None:
                moves += [field, key_of(field), _redelivered(raw) if mark else ""]
        if moves:
            lua.REQUEUE.run(self.own, [lease.inflight], ["LPUSH" if last else "RPUSH", *moves])
        lease.let_go(fields)
        self._drained = False  # no wake-up comes for them at once

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """kombu's way back for what it received itself: without acknowledgement, or broadcast."""
        sent = message.delivery_info
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            self._do_restore_message(
                message.serializable(), sent["exchange"], sent["routing_key"], pipe, leftmost
            )
            pipe.execute()

    def texts(self, lease: Lease, fields: list[str]) -> list[bytes | None]:
        """What the server has of messages in flight."""
        if not fields:
            return []
        return list(send(self.own, "HMGET", lease.inflight, *fields))

    def refuse(
        self,
        tag: str,
        reason: str = "rejected",
        detail: str = "",
        error: Exception | None = None,
    ) -> None:
        """Make a dead letter of a message in flight; with ``error`` its task's failure is told."""
        lease = self.own_lease
        if not lease.holds(tag):
            lease.tell_late(1)
            return
        field = field_of(tag)[1]
        (raw,) = self.texts(lease, [field])
        letters = DeadLetters(self.own, self.keys)
        if raw is not None and letters.bury(lease.inflight, field, raw, reason, detail):
            self.tell(raw, error)
        lease.let_go([field])

    def tell(self, raw: bytes, error: Exception | None) -> None:
        """Tell who waits for the task in ``raw`` why it will not run; from any thread."""
        if self.worker is not None and error is not None:
            refused.tell(self.worker, self, raw, error)

    # -- publishing

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if kwargs.get("_publish_batch") is not None or queue in self._expires:
            super()._put(queue, message, **kwargs)
            return
        # Tells how long the front of a queue has waited.
        message[OWN] = {AT: round(time.time(), 3)}
        suffix = self._q_for_pri("", self._get_message_priority(message, reverse=False))
        capture = capture_of(self)
        if capture is not None:
            capture.messages.append((queue, suffix, message))
            return
        self.outbox.send(queue, suffix, message)

    # -- consuming

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        (self.no_ack_queues.add if no_ack else self.no_ack_queues.discard)(queue)
        self.worker = refused.worker_of(kwargs.get("callback")) or self.worker
        found = super().basic_consume(queue, no_ack, *args, **kwargs)
        if queue not in self.active_fanout_queues:
            self.consuming_changed()
        return found

    def _basic_cancel(self, consumer_tag: str) -> Any:
        found = super()._basic_cancel(consumer_tag)
        self.consuming_changed()
        return found

    def _get(self, queue: str) -> dict[str, Any]:
        while fetched := self._fetch_one(queue):
            envelope = self.opened(fetched)
            if envelope is not None:
                return envelope
        raise stock.Empty

    def _fetch_one(self, queue: str) -> Fetched | None:
        lease, asker = self.own_lease, object()
        fetch = Fetch(self.keys, lease.consumer, lease.ask(asker, 1), 1, [queue])
        fetched: list[Fetched] = []
        try:
            fetched = fetch.read(fetch.run(self.own))
        finally:
            lease.answered(asker, [found.field for found in fetched])
        return fetched[0] if fetched else None

    def close(self) -> None:
        """Give everything back and end the lease if it was the last channel."""
        if not self.closed:
            self.stop_consuming()
        self.lines.close()
        try:
            super().close()
        finally:
            if self._own_lease is not None:
                lease_table.release(self)

    def orphan(self) -> None:
        """Close after a connection error: what is in use stays leased."""
        if not self.closed:
            self.stop_consuming()
            if self._qos is not None:
                self._qos.orphan()
            self.auto_delete_queues.clear()
            self.lines.close()
            _ = self.own  # made while the connection is known
            super().close()
            lease_table.release(self, orphaned=True)

    # -- on an asyncio loop

    def fetch_directly(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> LoopDriver:
        """Have the loop fetch in this channel's place, once it is started."""
        return LoopDriver(self, loop, deliver)

    def event_writer(self, dispatcher: Any, loop: asyncio.AbstractEventLoop) -> EventWriter:
        """Publishes what ``dispatcher``, which sends through this channel, would."""
        return EventWriter(dispatcher, loop)

    def tag(self, field: str) -> str:
        """The delivery tag of a message we hold."""
        return tag_of(self.own_lease.consumer, field)


def _redelivered(raw: bytes) -> str:
    """The message marked as delivered before; "" for one nobody can read: it goes back as is."""
    try:
        envelope = message.decode(raw)
    except ValueError:
        return ""
    message.mark_redelivered(envelope)
    return message.encode(envelope)


class SentinelChannel(Channel, stock.SentinelChannel):
    """Asks the sentinels of the URL for the master named by the option ``master_name``."""

    connection_class = stock.SentinelChannel.connection_class
    connection_class_ssl = stock.SentinelChannel.connection_class_ssl
    from_transport_options = (
        *Channel.from_transport_options,
        "master_name",
        "min_other_sentinels",
        "sentinel_kwargs",
        "sentinel_fanout_compat",
    )

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        # As kombu's, but for addresses behind "cloche+".
        parameters = self._connparams(asynchronous)
        parameters.pop("host", None)
        parameters.pop("port", None)
        named = parameters.pop("master_name", None)
        master_name = getattr(self, "master_name", None) or named
        if master_name is None:
            raise ValueError("'master_name' transport option must be specified.")
        addresses = transport_url.sentinels(self.connection.client, self.connection.default_port)
        manager: Any = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            addresses,
            min_other_sentinels=getattr(self, "min_other_sentinels", 0),
            sentinel_kwargs=getattr(self, "sentinel_kwargs", None),
            **parameters,
        )
        if asynchronous:
            self._async_sentinel_manager = manager
        else:
            self._sentinel_manager = manager
        login = {name: parameters[name] for name in ("username", "password") if name in parameters}
        return manager.master_for(master_name, redis.Redis, **login).connection_pool
