"""Fetching on an asyncio loop: wait at the bells, fetch a batch, hand it over.

The same scripts, keys and lease as a channel's own fetching (channel_consuming.py); two
connections, so that acknowledgements need not wait while one waits at the bells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import redis

from cloche.broker.direct_link import Link
from cloche.broker.fetch import Fetch, Fetched
from cloche.broker.keys import Keys
from cloche.broker.lease import Lease
from cloche.broker.outage import ERRORS, Outage

logger = logging.getLogger("cloche.transport")

#: Seconds BRPOP waits at the bells; see channel_consuming.py for these and the next three.
WAIT_SECONDS = 5
OVERDUE_SECONDS = 5
LOOK_EVERY = 6
FETCH_INTERVAL = 0.004

#: Messages fetched at once: more gains nothing (decision 0017).
BATCH = 100

#: Seconds acknowledgements wait for a fetch to take them along.
ACK_INTERVAL = 0.003

#: Called with each batch, in the loop's thread.
Deliver = Callable[[list[Fetched]], None]


class Intake:
    """What one consumer fetches on the running loop, from ``start`` until ``quiet``.

    ``capacity()`` says how many messages may be fetched now; whoever makes room calls
    :meth:`room`. ``deliver`` must not raise.
    """

    def __init__(
        self,
        keys: Keys,
        claim: Lease,
        pool: redis.ConnectionPool,
        capacity: Callable[[], int],
        deliver: Deliver,
        announce: Callable[[], None],
    ) -> None:
        self._keys = keys
        self._claim = claim
        self._pool = pool
        self._capacity = capacity
        self._deliver = deliver
        self._announce = announce
        self.outage = Outage("fetching")
        self._link = Link(self._lost)
        self._bell = Link(self._lost)
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
        self._bell.close()

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
        if self._claim.acks and self._link.open:
            asyncio.get_running_loop().create_task(self._flush_or_keep())

    async def _flush_or_keep(self) -> None:
        # What cannot be sent is sent with the next fetch, or by the lease's keeper.
        with contextlib.suppress(*ERRORS):
            await self._flush()

    async def _flush(self) -> None:
        claim = self._claim
        while claim.consumer and (fields := claim.acks.take()):
            key = claim.inflight
            try:
                settled = await self._call(self._link, ["HDEL", key, *fields])
            except BaseException:
                claim.acks.put_back(fields)
                raise
            claim.tell_late(claim.acks.missing(len(fields), int(settled)))

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
            await self._wait_at_the_bells()
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
        claim, asker = self._claim, object()
        if not claim.consumer:
            await asyncio.to_thread(self._announce)
        fetch = Fetch(
            self._keys,
            claim.consumer,
            claim.ask(asker, wanted),
            wanted,
            self._rotated(),
            claim.acks.take(),
            self._shared,
        )
        fetched: list[Fetched] = []
        self._fetched_at = asyncio.get_running_loop().time()
        try:
            reply = await self._call(self._link, fetch.command(text=self._send_text))
            fetched = fetch.read(reply)
        except BaseException as error:
            if not _lease_lost(error):
                claim.acks.put_back(fetch.settle)
            raise
        finally:
            if fetch.consumer == claim.consumer:
                claim.answered(asker, [one.field for one in fetched])
        self.outage.over()
        self._send_text = False
        if fetch.consumer != claim.consumer:
            return  # the lease was lost meanwhile: these are somebody else's
        claim.tell_late(claim.acks.missing(len(fetch.settle), reply[0]))
        self._drained = len(fetched) < wanted
        if fetched:
            self._deliver(fetched)

    def _rotated(self) -> tuple[str, ...]:
        if self._shared and len(self._queues) > 1:
            self._queues = (*self._queues[1:], self._queues[0])
        return self._queues

    async def _wait_at_the_bells(self) -> None:
        if await self._rung():
            self._drained = False
            return
        # The leader rings for what we could not hear of; look ourselves all the same.
        self._vain_waits += 1
        self._drained = self._vain_waits % LOOK_EVERY != 0

    async def _rung(self) -> bool:
        """Whether a bell rang or somebody woke us; False after WAIT_SECONDS."""
        if not self._bell.open:
            await self._bell.connect(self._pool)
        bells = [self._keys.bell(queue) for queue in self._queues]
        reply = self._bell.send([["BRPOP", *bells, WAIT_SECONDS]])
        waker = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait(
                (reply, waker),
                timeout=WAIT_SECONDS + OVERDUE_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waker.cancel()
        if reply.done():
            return _value(reply.result()[0]) is not None
        if not self._wake.is_set():
            self._bell.break_off("no reply at the bells")
            reply.result()
        self._wake.clear()
        self._bell.close()  # it waits at the wrong bells, or for nobody
        return True

    async def _call(self, link: Link, words: Sequence[Any]) -> Any:
        """One command's reply. Raises what redis-py raises."""
        future = link.send([words])
        try:
            (reply,) = await asyncio.wait_for(future, OVERDUE_SECONDS)
        except TimeoutError:
            link.break_off(f"no reply within {OVERDUE_SECONDS} s")
            raise
        return _value(reply)

    # -- faults

    def _lost(self, _: BaseException) -> None:
        self._wake.set()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, redis.exceptions.NoScriptError):
            self._send_text = True
        elif _lease_lost(error):
            self._claim.lose(self._claim.consumer)
        elif not self._stopping:
            self._link.close()
            self._bell.close()
            self._drained = False
            self.outage.failed(error)


def _lease_lost(error: BaseException) -> bool:
    return isinstance(error, redis.exceptions.ResponseError) and str(error).startswith("LEASELOST")


def _value(reply: Any) -> Any:
    """The reply itself. Raises it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply
