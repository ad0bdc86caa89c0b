"""Fetching on an asyncio loop: wait for a wake-up, fetch a batch, hand it over.

The same scripts, keys and lease as a channel's own fetching (consumer.py); two
connections, so that acknowledgements need not wait while one waits for a wake-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from typing import Any

import redis

from cloche.broker import message
from cloche.broker.connection.async_connection import AsyncConnection
from cloche.broker.connection.outage import ERRORS, Outage, plain
from cloche.broker.consumer import (
    AHEAD_LIMIT,
    FETCH_INTERVAL,
    LOOK_AFTER_WAITS,
    REPLY_TIMEOUT,
    WAIT_TIMEOUT,
)
from cloche.broker.keys import Keys
from cloche.broker.lease.fetch import Fetch, Fetched
from cloche.broker.lease.lease import Lease
from cloche.broker.qos import AHEAD, FETCH_LIMIT, WINDOW

logger = logging.getLogger("cloche.transport")

#: Seconds a fetch on its way may take when fetching ends.
STOP_TIMEOUT = 10

#: Messages beyond the prefetch count while as many results are on their way, at most.
MAX_WAITING = 200

#: Messages fetched at once: more gains nothing (decision 0017).
BATCH = 100

#: Seconds acknowledgements wait for a fetch to take them along.
ACK_INTERVAL = 0.003

#: Called with each batch, in the loop's thread.
Deliver = Callable[[list[Fetched]], None]

#: Messages that wait here, at most.
MAX_LOOKAHEAD = 200


class LoopDriver:
    """Fetching for ``channel`` on ``loop``, which runs in another thread than the channel's.

    ``deliver`` gets each batch in the loop's thread and must not raise.
    """

    def __init__(self, channel: Any, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._channel = channel
        self._loop = loop
        self.lease: Lease = channel.own_lease
        self.keys: Keys = channel.keys
        #: Longer messages are the channel's: they become dead letters.
        self.most_bytes: int = channel.max_message_bytes or sys.maxsize
        self._planned = False
        #: What is consumed now.
        self.queues: frozenset[str] = frozenset()
        #: How many of the messages in flight only wait for their result to be stored.
        self.finished: Callable[[], int] = lambda: 0
        self.ahead = Lookahead(self.lease, self._places, deliver, self._return)
        self.intake = LoopFetcher(
            self.keys, self.lease, channel.pool, self.capacity, self.ahead.take_in, self._announce
        )

    # -- the channel's thread

    def start(self) -> None:
        """Fetch in the channel's place from now on."""
        self._channel.direct = self
        self._loop.call_soon_threadsafe(self.intake.start)

    def consume(self, queues: Iterable[str]) -> None:
        """The channel consumes these queues now."""
        shared = self._channel.queue_order_strategy == "round_robin"
        names = tuple(queues)
        self.queues = frozenset(names)
        self._loop.call_soon_threadsafe(self._consume, names, shared)

    def quiet(self) -> None:
        """Fetch no more. What was fetched has been delivered when this returns."""
        if self._channel.direct is self:
            self._channel.direct = None
        try:
            quiet = asyncio.run_coroutine_threadsafe(self._quiet(), self._loop)
            unseen = quiet.result(STOP_TIMEOUT)
            self._return(unseen)
        except TimeoutError:
            logger.warning("a fetch on its way is left to the lease: the server does not answer")

    def stop(self) -> None:
        """The end: what is settled has been told to the server, if it can be reached."""
        try:
            asyncio.run_coroutine_threadsafe(self.intake.stop(), self._loop).result(STOP_TIMEOUT)
        except TimeoutError:
            logger.warning("the last acknowledgements are left to the lease")

    def back(self, fetched: Iterable[Fetched]) -> None:
        """The channel delivers these after all."""
        self._channel.fetched_at = time.monotonic()
        self._channel.inbox.extend(fetched)
        self._channel.tell_more()

    # -- any thread

    def tag(self, field: str) -> str:
        """The delivery tag of a message just fetched."""
        return f"{self.lease.consumer}/{field}"

    @property
    def doubtful(self) -> bool:
        """Whether the process slept past its lease: see :meth:`Lease.wait_if_doubtful`."""
        lease = self.lease
        return time.monotonic() - lease.renewed_at > lease.seconds

    def ack(self, tag: str) -> None:
        """The message is done with."""
        self.lease.ack(tag)
        self.ahead.acked()
        self.freed()

    def freed(self) -> None:
        """A place is free, an acknowledgement waits."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon_threadsafe(self._plan)

    def give_back(self, tags: Iterable[str], *, last: bool = False) -> None:
        """Back to the front of their queues, or to the back.

        By the lease's keeper if the server is away.
        """
        held = list(tags)
        try:
            self._channel.give_back(held, last=last)
        except ERRORS:
            self.lease.let_go(tag.partition("/")[2] for tag in held)

    def _return(self, fields: list[str]) -> None:
        """Back as they came: nobody has seen them."""
        if not fields:
            return
        try:
            self._channel.give_back([self.tag(field) for field in fields], mark=False)
        except ERRORS:
            self.lease.let_go(fields)  # the keeper returns them

    def refuse(self, tag: str) -> None:
        """Make it a dead letter."""
        try:
            self._channel.refuse(tag)
        except ERRORS as error:
            logger.warning("a rejected message stays in flight: %s", plain(error))

    def message(self, envelope: message.Envelope) -> Any:
        """kombu's view of a message that was not delivered by the channel."""
        return self._channel.Message(envelope, channel=self._channel)

    # -- the loop's thread

    def _plan(self) -> None:
        self._planned = False
        self.intake.acknowledge_soon()
        self.room()

    def room(self) -> None:
        """There may be room for more."""
        self.ahead.room()
        self.intake.room()

    def _consume(self, names: tuple[str, ...], shared: bool) -> None:
        self.ahead.keep(frozenset(names))
        self.intake.consume(names, shared=shared)

    async def _quiet(self) -> list[str]:
        await self.intake.quiet()
        return self.ahead.drop()

    def capacity(self) -> int:
        """How many messages may be fetched now: what the prefetch count leaves, and some ahead."""
        qos = self._channel.qos
        if not qos.can_consume():
            return 0
        if "can_consume" in qos.__dict__:  # worker_disable_prefetch, see qos.py
            return 1
        if not qos.prefetch_count:
            return FETCH_LIMIT
        return min(FETCH_LIMIT, self._places() + self.ahead.wanted - len(self.ahead))

    def _places(self) -> int:
        """How many messages may be delivered now.

        Tasks that have run and only wait for their result to be stored hold no place (as in
        :class:`cloche.broker.qos.QoS`), so that the next batch comes meanwhile; no more than
        MAX_WAITING of them, should the results' server be away.
        """
        qos = self._channel.qos
        if not qos.prefetch_count or "can_consume" in qos.__dict__:
            return FETCH_LIMIT
        used = len(self.lease.held) - len(self.ahead) - min(self.finished(), MAX_WAITING)
        return int(qos.prefetch_count) - max(0, used)

    def _announce(self) -> None:
        self.lease.announce(self._channel.own, self._channel.consumed)


class LoopFetcher:
    """What one consumer fetches on the running loop, from ``start`` until ``quiet``.

    ``capacity()`` says how many messages may be fetched now; whoever makes room calls
    :meth:`room`. ``deliver`` must not raise.
    """

    def __init__(
        self,
        keys: Keys,
        lease: Lease,
        pool: redis.ConnectionPool,
        capacity: Callable[[], int],
        deliver: Deliver,
        announce: Callable[[], None],
    ) -> None:
        self._keys = keys
        self._lease = lease
        self._pool = pool
        self._capacity = capacity
        self._deliver = deliver
        self._announce = announce
        self.outage = Outage("fetching")
        self._link = AsyncConnection(self._lost)
        self._waiter = AsyncConnection(self._lost)
        self._queues: tuple[str, ...] = ()
        self._shared = True
        self._wake = asyncio.Event()  # belongs to the loop that waits for it first
        self._drained = False
        self._vain_waits = 0
        self._send_text = False
        self._fetched_at = 0.0
        self._flush_planned = False
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # -- life

    def start(self) -> None:
        """Begin, on the running loop."""
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="cloche-intake")

    async def quiet(self) -> None:
        """Fetch no more; a fetch on its way is delivered. Acknowledging goes on."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        self._waiter.close()

    async def stop(self) -> None:
        """Fetch no more, send the acknowledgements, close the connections."""
        await self.quiet()
        with contextlib.suppress(*ERRORS):
            await self._flush()
        self._link.close()

    def consume(self, queues: Sequence[str], *, shared: bool = True) -> None:
        """What to fetch from, from now on; ``shared``: each queue gets its part of a batch."""
        self._queues, self._shared = tuple(queues), shared
        self._drained = False
        self._wake.set()

    def room(self) -> None:
        """There may be room for more."""
        if not self._drained:
            self._wake.set()

    # -- acknowledgements

    def acknowledge_soon(self) -> None:
        """Messages were settled: tell the server, unless a fetch does so first."""
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_later(ACK_INTERVAL, self._flush_now)

    def _flush_now(self) -> None:
        self._flush_planned = False
        if self._lease.acks and self._link.open:
            asyncio.get_running_loop().create_task(self._flush_or_keep())

    async def _flush_or_keep(self) -> None:
        # What cannot be sent is sent with the next fetch, or by the lease's keeper.
        with contextlib.suppress(*ERRORS):
            await self._flush()

    async def _flush(self) -> None:
        lease = self._lease
        while lease.consumer and (fields := lease.acks.take()):
            key = lease.inflight
            try:
                settled = await self._call(self._link, ["HDEL", key, *fields])
            except BaseException:
                lease.acks.put_back(fields)
                raise
            lease.tell_late(lease.acks.missing(len(fields), int(settled)))

    # -- fetching

    async def _run(self) -> None:
        while not self._stopping:
            try:
                if self.outage.pausing:
                    await self._pause(self.outage.rest)
                else:
                    await self._round()
            except ERRORS as error:
                self._failed(error)
            except Exception:
                logger.exception("fetching failed")
                await self._pause(1.0)

    async def _pause(self, seconds: float) -> None:
        """Wait to be woken, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    async def _round(self) -> None:
        if not self._queues:
            await self._pause(60)
            return
        if not self._link.open:
            await self._connect()
        if self._drained:
            await self._wait_for_a_wakeup()
            return
        wanted = min(BATCH, self._capacity())
        if wanted <= 0:
            await self._pause(1)
        elif self._holds_back(wanted):
            await asyncio.sleep(FETCH_INTERVAL / 2)
        else:
            await self._fetch(wanted)

    async def _connect(self) -> None:
        await self._link.connect(self._pool)
        await asyncio.to_thread(self._announce)
        self._drained = False

    def _holds_back(self, wanted: int) -> bool:
        """Whether to wait a moment, so that one fetch brings more than a message or two."""
        if 2 * wanted >= BATCH:
            return False
        return asyncio.get_running_loop().time() < self._fetched_at + FETCH_INTERVAL

    async def _fetch(self, wanted: int) -> None:
        lease, asker = self._lease, object()
        if not lease.consumer:
            await asyncio.to_thread(self._announce)
        fetch = Fetch(
            self._keys,
            lease.consumer,
            lease.ask(asker, wanted),
            wanted,
            self._rotated(),
            lease.acks.take(),
            self._shared,
        )
        fetched: list[Fetched] = []
        self._fetched_at = asyncio.get_running_loop().time()
        try:
            reply = await self._call(self._link, fetch.command(text=self._send_text))
            fetched = fetch.read(reply)
        except BaseException as error:
            if not _lease_lost(error):
                lease.acks.put_back(fetch.acks)
            raise
        finally:
            if fetch.consumer == lease.consumer:
                lease.answered(asker, [one.field for one in fetched])
        self.outage.over()
        self._send_text = False
        if fetch.consumer != lease.consumer:
            return  # the lease was lost meanwhile: these are somebody else's
        lease.tell_late(lease.acks.missing(len(fetch.acks), reply[0]))
        self._drained = len(fetched) < wanted
        if fetched:
            self._deliver(fetched)

    def _rotated(self) -> tuple[str, ...]:
        if self._shared and len(self._queues) > 1:
            self._queues = (*self._queues[1:], self._queues[0])
        return self._queues

    async def _wait_for_a_wakeup(self) -> None:
        if await self._woken():
            self._drained = False
            return
        # The leader wakes us for what we could not hear of; look ourselves all the same.
        self._vain_waits += 1
        self._drained = self._vain_waits % LOOK_AFTER_WAITS != 0

    async def _woken(self) -> bool:
        """Whether a wake-up came or somebody woke us; False after WAIT_TIMEOUT."""
        if not self._waiter.open:
            await self._waiter.connect(self._pool)
        wakeups = [self._keys.wakeup(queue) for queue in self._queues]
        reply = self._waiter.send([["BRPOP", *wakeups, WAIT_TIMEOUT]])
        waker = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait(
                (reply, waker),
                timeout=WAIT_TIMEOUT + REPLY_TIMEOUT,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waker.cancel()
        if reply.done():
            return _value(reply.result()[0]) is not None
        if not self._wake.is_set():
            self._waiter.break_off("no reply to BRPOP")
            reply.result()
        self._wake.clear()
        self._waiter.close()  # it waits for the wrong queues, or for nobody
        return True

    async def _call(self, link: AsyncConnection, words: Sequence[Any]) -> Any:
        """One command's reply. Raises what redis-py raises."""
        future = link.send([words])
        try:
            (reply,) = await asyncio.wait_for(future, REPLY_TIMEOUT)
        except TimeoutError:
            link.break_off(f"no reply within {REPLY_TIMEOUT} s")
            raise
        return _value(reply)

    # -- faults

    def _lost(self, _: BaseException) -> None:
        self._wake.set()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, redis.exceptions.NoScriptError):
            self._send_text = True
        elif _lease_lost(error):
            self._lease.lose(self._lease.consumer)
        elif not self._stopping:
            self._link.close()
            self._waiter.close()
            self._drained = False
            self.outage.failed(error)


def _lease_lost(error: BaseException) -> bool:
    return isinstance(error, redis.exceptions.ResponseError) and str(error).startswith("LEASELOST")


def _value(reply: Any) -> Any:
    """The reply itself. Raises it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


class Lookahead:
    """What one consumer has fetched ahead. In the loop's thread, but for :meth:`acked`.

    ``places()`` says how many messages may be handed to ``deliver`` now, those that wait here not
    counted as handed out; ``give_back`` puts fields back into their queues, in another thread.
    """

    def __init__(
        self,
        lease: Lease,
        places: Callable[[], int],
        deliver: Deliver,
        give_back: Callable[[list[str]], None],
    ) -> None:
        self._lease = lease
        self._places = places
        self._deliver = deliver
        self._give_back = give_back
        self._waiting: deque[Fetched] = deque()
        self._came_at = 0.0
        self._planned = False
        self._timer: asyncio.TimerHandle | None = None
        # Not the context of whoever makes room: what begins is nobody's child.
        self._context = copy_context()
        self._since = time.monotonic()
        self._settled = 0
        self._rate = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def acked(self) -> None:
        """One more has ended. From any thread: a miscount is no harm."""
        self._settled += 1

    @property
    def wanted(self) -> int:
        """How many may wait here now."""
        now = time.monotonic()
        if now - self._since >= WINDOW:
            self._rate = self._settled / (now - self._since)
            self._since, self._settled = now, 0
        return min(MAX_LOOKAHEAD, int(self._rate * AHEAD))

    def take_in(self, fetched: list[Fetched]) -> None:
        """Deliver what there are places for; keep the rest."""
        self._waiting.extend(fetched)
        self._came_at = time.monotonic()
        self._hand_out()

    def room(self) -> None:
        """There may be a place: fill it in the loop's next turn, all at once."""
        if self._waiting and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._in_turn, context=self._context)

    def _in_turn(self) -> None:
        self._planned = False
        self._hand_out()

    def _hand_out(self) -> None:
        waiting, held = self._waiting, self._lease.held
        while waiting and (free := self._places()) > 0:
            batch = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            # Without those that a lost lease has given to somebody else.
            self._deliver([one for one in batch if one.field in held])
        if waiting and self._timer is None:
            self._look_in(AHEAD_LIMIT)

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(
            seconds, self._look, context=self._context
        )

    def _look(self) -> None:
        """Give back what has waited for too long."""
        self._timer = None
        rest = self._came_at + AHEAD_LIMIT - time.monotonic()
        if not self._waiting:
            return
        if rest > 0:
            self._look_in(rest)
            return
        self._rate = 0.0
        self._return(self.drop())

    def keep(self, queues: frozenset[str]) -> None:
        """Only these queues are consumed now: what came from others goes back to them."""
        others = [one for one in self._waiting if one.queue not in queues]
        if others:
            self._waiting = deque(one for one in self._waiting if one.queue in queues)
            self._return([one.field for one in others])

    def drop(self) -> list[str]:
        """The fields of all that wait, which wait here no more."""
        fields = [one.field for one in self._waiting]
        self._waiting.clear()
        return fields

    def _return(self, fields: Iterable[str]) -> None:
        asyncio.get_running_loop().run_in_executor(None, self._give_back, list(fields))
