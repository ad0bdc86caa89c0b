"""How a channel consumes: wait at the bells, fetch a batch, deliver it, settle.

kombu's poller knows one command in flight on the consuming connection ("BRPOP"); here it is
either a fetch or a wait:

* fetch: one Lua call, replies at once with what it moved into our in-flight hash;
* wait: BRPOP on the bells of our queues, so an idle consumer costs nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import redis
from kombu.transport.redis import Empty, _socket_readable

from cloche.broker import delayed, message
from cloche.broker.channel_ahead import DELIVERY_BUDGET, Ahead
from cloche.broker.commands import disconnect_idle, send
from cloche.broker.fetch import Fetch, Fetched
from cloche.broker.lease import SUSPECT, field_of
from cloche.broker.outage import ERRORS, Outage

logger = logging.getLogger("cloche.transport")

#: Seconds BRPOP waits at the bells. The leader rings for messages of stock producers.
WAIT_SECONDS = 5

#: Seconds a reply may be overdue before the connection counts as dead.
OVERDUE_SECONDS = 5

#: Waits in vain after which a consumer looks into its queues without being called.
LOOK_EVERY = 6

#: Seconds the event loop may stand still for a fetch's reply after a bell.
PROMPT_SECONDS = 0.01

#: Seconds between small fetches, and how long acknowledgements wait for one to take them along.
FETCH_INTERVAL = 0.004

#: Seconds by which the event loop turns later than something is due, so that it is due then.
MARGIN = 0.0005


class Consuming(Ahead):
    """The consuming half of a channel."""

    #: Receives a message that may be delivered, its text and delivery tag, and puts it among those
    #: the prefetch limit counts; False leaves it to Celery's consumer.
    take: Callable[[bytes, str], bool] | None = None

    # What it uses of kombu's channel and of ours.
    _active_queues: list[str]
    _in_poll: Any
    _queue_cycle: Any
    active_fanout_queues: set[str]
    active_queues: list[str]
    claim: Any
    client: Any
    connection: Any
    inbox: deque[Fetched]
    keys: Any
    line: Any
    max_deliveries: int
    max_message_bytes: int
    no_ack_queues: set[str]
    own: Any
    qos: Any
    queue_order_strategy: str
    tag: Any

    def start_consuming(self) -> None:
        """Set up; nothing is sent before somebody consumes."""
        self.fetching = Outage("fetching")
        self.listening = Outage("listening for remote control", patient=True)
        self._fetch: Fetch | None = None
        self._drained = False
        self._announced = False
        self._send_text = False
        self.start_ahead()
        self._vain_waits = 0
        self._suspects: deque[Fetched] = deque()
        self._suspect = ""

    # -- what to consume

    @property
    def claims(self) -> bool:
        """Whether a queue is consumed whose messages must be acknowledged."""
        return any(queue not in self.no_ack_queues for queue in self.active_queues)

    def consuming_changed(self) -> None:
        """Queues were added or cancelled."""
        self._announced = False
        self._drained = False
        if self.direct is not None:
            self.direct.consume(self.active_queues)

    @property
    def consumed(self) -> list[str]:
        """Queues to register as waited for."""
        return self.active_queues if self.claims else []

    # -- one round of the event loop

    def tick(self) -> None:
        """Send what must not wait for the next fetch; notice a dead connection."""
        if self._claim is None:  # type: ignore[attr-defined]
            return
        self._check_overdue()
        self.spent = 0.0
        if self._suspect and not self.claim.holds(self._suspect):
            if field_of(self._suspect)[0] == self.claim.consumer:  # else the lease was lost
                self.claim.acks.add(SUSPECT)
            self._suspect = ""
        if self._suspects and not self._suspect:
            self.inbox.append(self._suspects.popleft())
        if self.inbox:
            self.go_on()
        if self._fetch is None and self.claim.acks:
            self._flush_in_time()

    def _flush_in_time(self) -> None:
        """No fetch takes the acknowledgements along: send them, many at once where a loop runs.

        Whoever adds the first has it turn in time (:meth:`wake_for_acks`).
        """
        if self.wake_later is None or self.claim.acks.age > FETCH_INTERVAL:
            self.flush()

    def wake_for_acks(self) -> None:
        """An acknowledgement was added, or is about to be: see that it is sent in time."""
        self.wake_once(FETCH_INTERVAL + MARGIN)

    def flush(self) -> None:
        """Send the acknowledgements. Raises what redis-py raises."""
        if self.claim.acks:
            self.claim.tell_late(self.claim.acks.flush(self.own, self.claim.inflight))

    def _check_overdue(self) -> None:
        connection = self._in_poll
        if not connection or self._brpop_sent_at is None:
            return
        limit = OVERDUE_SECONDS + (0 if self._fetch else WAIT_SECONDS)
        if time.monotonic() - self._brpop_sent_at < limit:
            return
        sock = connection._sock
        if sock is not None and not _socket_readable(sock):
            raise redis.exceptions.TimeoutError(f"no reply for {limit} s")

    def failed(self, error: BaseException) -> None:
        """The server cannot be used now: drop the connection, forget what was asked."""
        self._forget_fetch()
        self._in_poll = None
        self._drained = False
        self._announced = False
        connection = getattr(self.client, "connection", None)
        if connection is not None:
            connection.disconnect()
        self.line.drop()
        disconnect_idle(self.own)
        self.fetching.failed(error)

    def deaf(self, error: BaseException) -> None:
        """The connection for broadcasts (remote control, events) broke."""
        self._in_listen = None
        connection = getattr(self.subclient, "connection", None)  # type: ignore[attr-defined]
        if connection is not None:
            connection.disconnect()
        self.listening.failed(error)

    def _forget_fetch(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            self.claim.acks.put_back(fetch.settle)
            self.claim.answered(self)

    # -- kombu's names for sending and reading the command in flight

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self.claims:
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        self._forget_fetch()  # its connection broke
        if not self._announced:
            self.claim.announce(self.own, self.consumed)
            self._announced = True
        if self.direct is not None:
            return
        if self._drained:
            self._send_wait()
        else:
            self._send_fetch()

    def _holds_back(self, wanted: int) -> bool:
        """Whether to wait a moment, so that one fetch brings more than a message or two.

        Only where an event loop wakes us, only when most of what may be held is held.
        """
        if self.wake_later is None or 2 * wanted >= self.qos.prefetch_count + self.qos.ahead:
            return False
        if self.inbox:
            return True  # there is work; each that ends brings us here again
        # The loop was told to turn by then when the last fetch was answered.
        return time.monotonic() < self.fetched_at + FETCH_INTERVAL

    def _send_wait(self) -> None:
        bells = [self.keys.bell(queue) for queue in self.active_queues]
        self._send("BRPOP", *bells, WAIT_SECONDS)

    def _send_fetch(self) -> None:
        wanted = self.qos.capacity()
        if not wanted or self._holds_back(wanted):
            return
        claim = self.claim
        queues = self._queue_cycle.consume(len(self.active_queues))
        self._queue_cycle.rotate(queues[0])
        self._fetch = fetch = Fetch(
            self.keys,
            claim.consumer,
            claim.ask(self, wanted),
            wanted,
            queues,
            claim.acks.take(),
            self.queue_order_strategy == "round_robin",
        )
        self.fetched_at = time.monotonic()
        self._send(*fetch.command(text=self._send_text))

    def _send(self, *words: Any) -> None:
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command(*words)

    def _brpop_read(self, **options: Any) -> Any:
        if not self.claims and self._fetch is None:
            return super()._brpop_read(**options)  # type: ignore[misc]
        if not self._read_reply():
            raise Empty
        return True

    def _read_reply(self) -> bool:
        """Whether it brought something to deliver."""
        try:
            reply = self.client.connection.read_response()
        except redis.exceptions.NoScriptError:
            self._send_text = True
            self._forget_fetch()
            return False
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("LEASELOST") or self._fetch is None:
                raise
            self.claim.lose(self._fetch.consumer)
            self.claim.tell_late(len(self._fetch.settle))
            self._fetch = None
            return False
        finally:
            self._in_poll = None
        self.fetching.over()
        if self._fetch is not None:
            return self._received(self._fetch, reply)
        if reply is not None:
            self._drained = False
            return self._fetch_now()
        # The leader rings for what we could not hear of; look ourselves all the same.
        self._vain_waits += 1
        self._drained = self._vain_waits % LOOK_EVERY != 0
        return False

    def _fetch_now(self) -> bool:
        """Fetch at once after the bell: the next turn of the event loop would cost 1 ms."""
        self._send_fetch()
        if self._fetch is not None and self._in_poll.can_read(timeout=PROMPT_SECONDS):
            return self._read_reply()
        return False

    def _received(self, fetch: Fetch, reply: list[Any]) -> bool:
        fetched = fetch.read(reply)
        if fetch.consumer == self.claim.consumer:
            self.claim.answered(self, [one.field for one in fetched])
            self.claim.tell_late(self.claim.acks.missing(len(fetch.settle), reply[0]))
            self.inbox.extend(fetched)
        self._fetch = None
        self._send_text = False
        self._drained = len(fetched) < fetch.wanted
        if not self._drained:
            self.wake_once(FETCH_INTERVAL + MARGIN)
        return self.deliver()

    # -- delivering

    def deliver_some(self) -> bool:
        """Deliver as much as the budget and the prefetch limit allow; whether anything was."""
        until = time.monotonic() + DELIVERY_BUDGET
        delivered = False
        while self.inbox and self.qos.may_deliver():
            one = self.inbox.popleft()
            if self._taken(one):
                delivered = True
                if time.monotonic() > until:
                    break
                continue
            try:
                envelope = self._next(one)
            except ERRORS:
                self.inbox.appendleft(one)
                raise
            if envelope is not None:
                self._hand_over(one, envelope)
                delivered = True
            if time.monotonic() > until:
                break
        if self.inbox:
            self.go_on()
        return delivered

    def _taken(self, one: Fetched) -> bool:
        """Whether :attr:`take` has received it, in Celery's consumer's place."""
        if (
            self.take is None
            or one.queue not in self.active_queues
            or one.queue in self.no_ack_queues
            or len(one.raw) > self.max_message_bytes
        ):
            return False
        tag = self.tag(one.field)
        return bool(self.claim.holds(tag)) and self.take(one.raw, tag)

    def _next(self, one: Fetched) -> message.Envelope | None:
        if not self.claim.holds(self.tag(one.field)):
            return None  # the lease was lost meanwhile
        if one.queue not in self.active_queues:
            self.give_back([self.tag(one.field)])
            return None
        envelope = self.opened(one)
        if envelope is None or self._kept_apart(one, envelope):
            return None
        return envelope

    def _hand_over(self, one: Fetched, envelope: message.Envelope) -> None:
        if one.queue in self.no_ack_queues:
            self.wake_for_acks()
            self.claim.settle(self.tag(one.field))
        self.connection._deliver(envelope, one.queue)

    def opened(self, one: Fetched) -> message.Envelope | None:
        """The envelope, ready to deliver; None if it went elsewhere instead.

        Raises what redis-py raises.
        """
        tag = self.tag(one.field)
        if len(one.raw) > self.max_message_bytes:
            detail = f"{len(one.raw)} bytes, more than max_message_bytes={self.max_message_bytes}"
            self.refuse(tag, "oversized", detail)  # type: ignore[attr-defined]
            return None
        try:
            envelope = message.decode(one.raw)
        except ValueError as error:
            self.refuse(tag, "undecodable", str(error))  # type: ignore[attr-defined]
            return None
        if envelope["headers"].get("eta") and delayed.repark(self, one, envelope):
            return None
        envelope["properties"]["delivery_tag"] = tag
        return envelope

    def _kept_apart(self, one: Fetched, envelope: message.Envelope) -> bool:
        """Deliver messages on their last chance one at a time.

        When several were in the hands of a consumer that died, nobody knows which one killed
        it. So that the innocent do not become dead letters, the reaper blames the one marked.
        """
        chances = self.max_deliveries - message.delivery_count(envelope)
        if chances > 1 or self.max_deliveries < 2:
            return False
        if self._suspect and self.claim.holds(self._suspect):
            self._suspects.append(one)
            return True
        self.flush()  # or the end of the last one's mark would be the end of this one's
        send(self.own, "HSET", self.claim.inflight, SUSPECT, one.field)
        self._suspect = self.tag(one.field)
        return False

    def stop_consuming(self) -> None:
        """Learn what a fetch on its way brings and give back what was not delivered."""
        if self._fetch is not None and self._in_poll:
            self._read_last(self._fetch)
        self._forget_fetch()
        self._in_poll = None
        self.stop_telling()
        undelivered = [*self.inbox, *self._suspects]
        self.inbox.clear()
        self._suspects.clear()
        if undelivered:
            try:
                self.give_back([self.tag(one.field) for one in undelivered])
            except ERRORS:
                self.claim.let_go(one.field for one in undelivered)  # the keeper returns them

    def _read_last(self, fetch: Fetch) -> None:
        try:
            fetched = fetch.read(self._in_poll.read_response())
        except ERRORS:
            return
        self._fetch = None
        self.claim.answered(self, [one.field for one in fetched])
        self.inbox.extend(fetched)
