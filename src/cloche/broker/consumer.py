"""How a channel consumes: wait for a wake-up, fetch a batch, deliver it, settle.

kombu's poller knows one command in flight on the consuming connection ("BRPOP"); here it is
either a fetch or a wait:

* fetch: one Lua call, replies at once with what it moved into our in-flight hash;
* wait: BRPOP on the wake-up keys of our queues, so an idle consumer costs nothing.

Batches are for Celery's worker. Everybody else gets one message a call of ``drain_events``, as from
kombu, and it is fetched when it is asked for: then the most urgent one comes, and what nobody asked
for stays in the queue, where others can take it. Who consumes without acknowledgements only is
served by kombu's own BRPOP.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import redis
from celery.exceptions import InvalidTaskError
from kombu.transport import redis as stock
from kombu.transport.redis import Empty, _socket_readable

from cloche.broker import delayed, message
from cloche.broker.connection.commands import disconnect_idle, send
from cloche.broker.connection.outage import ERRORS, Outage
from cloche.broker.lease.fetch import Fetch, Fetched
from cloche.broker.lease.lease import SUSPECT, field_of
from cloche.broker.results import deferred

#: Seconds after which what was fetched ahead and may not be delivered goes back to its queue.
AHEAD_LIMIT = 0.1

#: Seconds that may be spent on delivering without letting the event loop run. The solo pool runs
#: each task within its delivery; its acknowledgement is only sent when the loop runs again.
DELIVERY_BUDGET = 0.005

logger = logging.getLogger("cloche.transport")

#: Seconds BRPOP waits for a wake-up. The leader wakes us for messages of stock producers.
WAIT_TIMEOUT = 5

#: Seconds a reply may be overdue before the connection counts as dead.
REPLY_TIMEOUT = 5

#: Waits in vain after which a consumer looks into its queues without being called.
LOOK_AFTER_WAITS = 6

#: Seconds the event loop may stand still for a fetch's reply after a wake-up.
PROMPT_TIMEOUT = 0.01

#: Seconds between small fetches, and how long acknowledgements wait for one to take them along.
FETCH_INTERVAL = 0.004

#: Seconds a retry waits at most for the attempt before it, and between two looks.
EARLY_TIMEOUT, EARLY_INTERVAL = 1.0, 0.002

#: Seconds by which the event loop turns later than something is due, so that it is due then.
MARGIN = 0.0005


class ConsumingChannel(stock.Channel):
    """The consuming half of :class:`cloche.broker.channel.Channel`."""

    #: Receives a message that may be delivered, its text and delivery tag, and puts it among those
    #: the prefetch limit counts; False leaves it to Celery's consumer.
    take: Callable[[bytes, str], bool] | None = None

    #: What fetches here in its place: a :class:`cloche.broker.loop_driver.LoopDriver`.
    direct: Any = None

    _in_poll: Any

    def start_consuming(self) -> None:
        """Set up; nothing is sent before somebody consumes."""
        self.fetching = Outage("fetching")
        self.listening = Outage("listening for remote control", patient=True)
        self._fetch: Fetch | None = None
        self._asked_at: float | None = None  # when what is in flight was sent, unless kombu sent it
        self._drained = False
        self._announced = False
        self._send_text = False
        self.fetched_at = 0.0
        self.delivering = False
        self.spent = 0.0
        self._more: tuple[socket.socket, socket.socket] | None = None
        self._wake_at = 0.0
        self._called = False
        self._vain_waits = 0
        self._suspects: deque[Fetched] = deque()
        self._suspect = ""
        #: Retries whose attempt before has not ended here, and since when each field waits.
        self._early: deque[Fetched] = deque()
        self._early_since: dict[str, float] = {}
        self._look_early_at = 0.0
        deferred.listen(self)

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
        if self._own_lease is None:
            return
        self._check_overdue()
        self.spent = 0.0
        if self._suspect and not self.own_lease.holds(self._suspect):
            if field_of(self._suspect)[0] == self.own_lease.consumer:  # else the lease was lost
                self.own_lease.acks.add(SUSPECT)
            self._suspect = ""
        if self._suspects and not self._suspect:
            self.inbox.append(self._suspects.popleft())
        if self._early and time.monotonic() >= self._look_early_at:
            self.inbox.extend(self._early)
            self._early.clear()
        if self.inbox:
            self.go_on()
        if self._fetch is None and self.own_lease.acks:
            self._flush_in_time()

    def _flush_in_time(self) -> None:
        """No fetch takes the acknowledgements along: send them, many at once where a loop runs.

        Whoever adds the first has it turn in time (:meth:`wake_for_acks`).
        """
        if self.wake_later is None or self.own_lease.acks.age > FETCH_INTERVAL:
            self.flush()

    def wake_for_acks(self) -> None:
        """An acknowledgement was added, or is about to be: see that it is sent in time."""
        self.wake_once(FETCH_INTERVAL + MARGIN)

    def flush(self) -> None:
        """Send the acknowledgements. Raises what redis-py raises."""
        if self.own_lease.acks:
            self.own_lease.tell_late(self.own_lease.acks.flush(self.own, self.own_lease.inflight))

    def _check_overdue(self) -> None:
        connection = self._in_poll
        if not connection or self._asked_at is None:
            return
        limit = REPLY_TIMEOUT + (0 if self._fetch else WAIT_TIMEOUT)
        if time.monotonic() - self._asked_at < limit:
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
        self.lines.drop()
        disconnect_idle(self.own)
        self.fetching.failed(error)

    def listening_failed(self, error: BaseException) -> None:
        """The connection for broadcasts (remote control, events) broke."""
        self._in_listen = None
        connection = getattr(self.subclient, "connection", None)
        if connection is not None:
            connection.disconnect()
        self.listening.failed(error)

    def _forget_fetch(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            self.own_lease.acks.put_back(fetch.acks)
            self.own_lease.answered(self)

    # -- kombu's names for sending and reading the command in flight

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self.claims:
            self._asked_at = None
            super()._brpop_start(timeout)
            return
        self._forget_fetch()  # its connection broke
        if not self._announced:
            self.own_lease.announce(self.own, self.consumed)
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
        wakeups = [self.keys.wakeup(queue) for queue in self.active_queues]
        seconds = WAIT_TIMEOUT if self.worker is not None else min(self.brpop_timeout, WAIT_TIMEOUT)
        self._send("BRPOP", *wakeups, seconds or WAIT_TIMEOUT)

    def _send_fetch(self) -> None:
        wanted = self.qos.capacity()
        if not wanted or self._holds_back(wanted):
            return
        lease = self.own_lease
        queues = self._queue_cycle.consume(len(self.active_queues))
        self._queue_cycle.rotate(queues[0])
        self._fetch = fetch = Fetch(
            self.keys,
            lease.consumer,
            lease.ask(self, wanted),
            wanted,
            queues,
            lease.acks.take(),
            self.queue_order_strategy == "round_robin",
        )
        self.fetched_at = time.monotonic()
        self._send(*fetch.command(text=self._send_text))

    def _send(self, *words: Any) -> None:
        self._in_poll = self.client.connection
        self._asked_at = time.monotonic()
        self._brpop_sent_at = None  # kombu looks after its own only
        self.client.connection.send_command(*words)

    def _brpop_read(self, **options: Any) -> Any:
        if self._asked_at is None:  # whatever is consumed by now, it is kombu's answer
            return super()._brpop_read(**options)
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
            self.own_lease.lose(self._fetch.consumer)
            self.own_lease.tell_late(len(self._fetch.acks))
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
        # The leader wakes us for what we could not hear of; look ourselves all the same.
        self._vain_waits += 1
        self._drained = self._vain_waits % LOOK_AFTER_WAITS != 0
        return False

    def _fetch_now(self) -> bool:
        """Fetch at once after the wake-up: the next turn of the event loop would cost 1 ms."""
        if not self.claims:  # cancelled while it waited; the leader wakes it again
            return False
        self._send_fetch()
        if self._fetch is not None and self._in_poll.can_read(timeout=PROMPT_TIMEOUT):
            return self._read_reply()
        return False

    def _received(self, fetch: Fetch, reply: list[Any]) -> bool:
        fetched = fetch.read(reply)
        if fetch.consumer == self.own_lease.consumer:
            self.own_lease.answered(self, [one.field for one in fetched])
            self.own_lease.tell_late(self.own_lease.acks.missing(len(fetch.acks), reply[0]))
            self.inbox.extend(fetched)
        self._fetch = None
        self._send_text = False
        self._drained = len(fetched) < fetch.wanted
        if not self._drained:
            self.wake_once(FETCH_INTERVAL + MARGIN)
        return self.deliver()

    # -- messages fetched before they may be delivered, and when they are

    @property
    def wake_later(self) -> Callable[[float], Any] | None:
        """Makes the event loop turn after some seconds; None without an event loop."""
        return getattr(self.connection, "wake_later", None)

    def go_on(self) -> None:
        """Deliver more of what was fetched ahead, or give it back when that takes too long."""
        if not self.active_queues:  # cancelled: the worker stops
            self._give_back_unseen()
        elif self.qos.may_deliver():
            self.tell_more()
        elif (rest := self.fetched_at + AHEAD_LIMIT - time.monotonic()) > 0:
            self.wake_once(rest)
        else:
            self._give_back_unseen()

    def _give_back_unseen(self) -> None:
        unseen = [*self.inbox]
        self.inbox.clear()
        try:
            self.give_back([self.tag(one.field) for one in unseen], mark=False)
        except ERRORS:
            self.own_lease.let_go(one.field for one in unseen)  # the keeper returns them
            raise

    def wake_once(self, seconds: float) -> None:
        """Have the event loop turn then, if there is one and it was not told already.

        Not out of :meth:`tick`: kombu's hub has decided by then how long it will poll.
        """
        now = time.monotonic()
        if self.wake_later is not None and not now < self._wake_at <= now + seconds:
            self._wake_at = now + seconds
            self.wake_later(seconds)

    def place_is_free(self) -> None:
        """From any thread: have the event loop deliver the next, if one waits."""
        if self.inbox:
            self.turn_soon()

    def turn_soon(self) -> None:
        """From any thread: have the event loop turn: deliver, fetch, acknowledge."""
        call_soon = getattr(self.connection, "call_soon", None)
        if call_soon is not None and not self._called:
            self._called = True
            call_soon(self._on_call)

    def _on_call(self) -> None:
        self._called = False
        if self.connection is not None:
            self.wake_for_acks()
            self.deliver_next()

    def deliver(self) -> bool:
        """Deliver what was fetched, as much as the budget allows; whether anything was."""
        self.delivering = True
        began = time.monotonic()
        try:
            return self.deliver_some()
        finally:
            self.delivering = False
            self.spent += time.monotonic() - began

    def deliver_next(self) -> None:
        """A place is free: fill it before the event loop polls, not a turn later."""
        if self.delivering or self.wake_later is None or not self.active_queues:
            return
        if self.spent > DELIVERY_BUDGET:
            self.tell_more()
            return
        try:
            self.deliver()
        except ERRORS as error:
            self.failed(error)

    # -- a socket that is readable while messages wait for delivery

    @property
    def more(self) -> socket.socket | None:
        """Readable while fetched messages wait for delivery."""
        return self._more[0] if self._more else None

    def tell_more(self) -> None:
        if self.inbox and self._more is None:
            self._more = socket.socketpair()
            self._more[1].send(b"\0")
            try:
                self.connection.cycle.watch(self)
            except ValueError:  # the event loop is being closed or made anew
                self.stop_telling()

    def deliver_more(self) -> None:
        """Called by the poller. Raises Empty as kombu's readers do."""
        self.stop_telling()
        if not self.deliver():
            raise Empty

    def stop_telling(self) -> None:
        if self._more is not None:
            self.connection.cycle.unwatch(self)
            for end in self._more:
                end.close()
            self._more = None

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
            if time.monotonic() > until or (delivered and self.worker is None):
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
            or self._oversized(one.raw)
        ):
            return False
        tag = self.tag(one.field)
        if not self.own_lease.holds(tag):
            return False
        return bool(self.take(one.raw, tag))

    def _next(self, one: Fetched) -> message.Envelope | None:
        if not self.own_lease.holds(self.tag(one.field)):
            return None  # the lease was lost meanwhile
        if one.queue not in self.active_queues:
            self.give_back([self.tag(one.field)], mark=False)
            return None
        envelope = self.opened(one)
        if envelope is None or self._early_retry(one, envelope) or self._kept_apart(one, envelope):
            return None
        return envelope

    def _hand_over(self, one: Fetched, envelope: message.Envelope) -> None:
        if one.queue in self.no_ack_queues:
            self.wake_for_acks()
            self.own_lease.ack(self.tag(one.field))
        self.connection._deliver(envelope, one.queue)

    def opened(self, one: Fetched) -> message.Envelope | None:
        """The envelope, ready to deliver; None if it went elsewhere instead.

        Raises what redis-py raises.
        """
        tag = self.tag(one.field)
        if self._oversized(one.raw):
            detail = f"{len(one.raw)} bytes, more than max_message_bytes={self.max_message_bytes}"
            self.refuse(tag, "oversized", detail, InvalidTaskError(f"a message of {detail}"))
            return None
        try:
            envelope = message.decode(one.raw)
        except ValueError as error:
            self.refuse(tag, "undecodable", str(error))
            return None
        if delayed.repark(self, one, envelope):
            return None
        envelope["properties"]["delivery_tag"] = tag
        return envelope

    def _oversized(self, raw: bytes) -> bool:
        return bool(0 < self.max_message_bytes < len(raw))

    def _early_retry(self, one: Fetched, envelope: message.Envelope) -> bool:
        """Let a retry wait until this worker has told that the attempt before it is one.

        Without a countdown it comes back within a millisecond. Run beside the rest of the attempt
        before, it could end first, and its result be overwritten with RETRY for ever.
        """
        if self.worker is None or self.wake_later is None:
            return False
        now = time.monotonic()
        since = self._early_since.pop(one.field, now)
        if now - since > EARLY_TIMEOUT or not _attempt_before_runs(envelope["headers"]):
            return False
        self._early_since[one.field] = since
        self._early.append(one)
        self._look_early_at = now + EARLY_INTERVAL
        self.wake_once(EARLY_INTERVAL + MARGIN)
        return True

    def _kept_apart(self, one: Fetched, envelope: message.Envelope) -> bool:
        """Deliver messages on their last chance one at a time.

        When several were in the hands of a consumer that died, nobody knows which one killed
        it. So that the innocent do not become dead letters, the reaper blames the one marked.
        """
        chances = self.max_deliveries - message.delivery_count(envelope)
        if chances > 1 or self.max_deliveries < 2:
            return False
        if self._suspect and self.own_lease.holds(self._suspect):
            self._suspects.append(one)
            return True
        self.flush()  # or the end of the last one's mark would be the end of this one's
        send(self.own, "HSET", self.own_lease.inflight, SUSPECT, one.field)
        self._suspect = self.tag(one.field)
        return False

    def stop_consuming(self) -> None:
        """Learn what a fetch on its way brings and give back what was not delivered.

        It goes as it came: nobody has seen it.
        """
        if self._in_poll and self._fetch is not None:
            self._read_last(self._fetch)
        elif self._in_poll and self._asked_at is None:
            # The server may have popped a message for kombu's BRPOP already: as kombu does.
            with contextlib.suppress(Empty, *ERRORS):
                self._brpop_read()
        self._forget_fetch()
        self._in_poll = None
        self.stop_telling()
        undelivered = [*self.inbox, *self._suspects, *self._early]
        for held in (self.inbox, self._suspects, self._early, self._early_since):
            held.clear()
        if undelivered:
            try:
                self.give_back([self.tag(one.field) for one in undelivered], mark=False)
            except ERRORS:
                self.own_lease.let_go(one.field for one in undelivered)  # the keeper returns them

    def _read_last(self, fetch: Fetch) -> None:
        try:
            fetched = fetch.read(self._in_poll.read_response())
        except ERRORS:
            return
        self._fetch = None
        self.own_lease.answered(self, [one.field for one in fetched])
        self.inbox.extend(fetched)


def _attempt_before_runs(headers: Any) -> bool:
    """Whether the message is a retry of a task that Celery's worker here still has as running."""
    if not isinstance(headers, dict):
        return False
    task_id, retries = headers.get("id"), headers.get("retries")
    if not isinstance(task_id, str) or not isinstance(retries, int) or not retries:
        return False  # whatever else others write there
    # Only a Celery worker has loaded it; importing it would cost every producer 0.1 s.
    state = sys.modules.get("celery.worker.state")
    before = state and state.requests.get(task_id)
    return before is not None and (before.request_dict.get("retries") or 0) < retries
