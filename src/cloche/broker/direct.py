"""The direct path: a channel whose messages are fetched on an asyncio loop.

The channel stays what Celery's consumer talks to: it declares, consumes, cancels, keeps the
prefetch count and settles. Only fetching moves to the loop, where most messages go straight to
the pool; the others come back to the channel, which delivers them as if it had fetched them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from cloche.broker import message
from cloche.broker.direct_ahead import Ahead
from cloche.broker.direct_intake import Deliver, Intake
from cloche.broker.fetch import Fetched
from cloche.broker.keys import Keys
from cloche.broker.lease import Lease
from cloche.broker.outage import ERRORS, plain
from cloche.broker.qos import FETCH_LIMIT

logger = logging.getLogger("cloche.transport")

#: Seconds a fetch on its way may take when fetching ends.
PATIENCE = 10

#: Messages beyond the prefetch count while as many results are on their way, at most.
WAITING = 200


class Direct:
    """Fetching for ``channel`` on ``loop``, which runs in another thread than the channel's.

    ``deliver`` gets each batch in the loop's thread and must not raise.
    """

    def __init__(self, channel: Any, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._channel = channel
        self._loop = loop
        self.claim: Lease = channel.claim
        self.keys: Keys = channel.keys
        #: Longer messages are the channel's: they become dead letters.
        self.most_bytes: int = channel.max_message_bytes
        self._planned = False
        #: What is consumed now.
        self.queues: frozenset[str] = frozenset()
        #: How many of the messages in flight only wait for their result to be stored.
        self.finished: Callable[[], int] = lambda: 0
        self.ahead = Ahead(self.claim, self._places, deliver, self._return)
        self.intake = Intake(
            self.keys, self.claim, channel.pool, self.capacity, self.ahead.take_in, self._announce
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
            unseen = asyncio.run_coroutine_threadsafe(self._quiet(), self._loop).result(PATIENCE)
            self._return(unseen)
        except TimeoutError:
            logger.warning("a fetch on its way is left to the lease: the server does not answer")

    def stop(self) -> None:
        """The end: what is settled has been told to the server, if it can be reached."""
        try:
            asyncio.run_coroutine_threadsafe(self.intake.stop(), self._loop).result(PATIENCE)
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
        return f"{self.claim.consumer}/{field}"

    @property
    def doubtful(self) -> bool:
        """Whether the process slept past its lease: see :meth:`Lease.wait_if_doubtful`."""
        claim = self.claim
        return time.monotonic() - claim.renewed_at > claim.seconds

    def settle(self, tag: str) -> None:
        """The message is done with."""
        self.claim.settle(tag)
        self.ahead.settled()
        self.freed()

    def freed(self) -> None:
        """A place is free, an acknowledgement waits."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon_threadsafe(self._plan)

    def give_back(self, tags: Iterable[str]) -> None:
        """Back to the front of their queues; by the lease's keeper if the server is away."""
        held = list(tags)
        try:
            self._channel.give_back(held)
        except ERRORS:
            self.claim.let_go(tag.partition("/")[2] for tag in held)

    def _return(self, fields: list[str]) -> None:
        """Back as they came: nobody has seen them."""
        if not fields:
            return
        try:
            self._channel.give_back([self.tag(field) for field in fields], mark=False)
        except ERRORS:
            self.claim.let_go(fields)  # the keeper returns them

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
        WAITING of them, should the results' server be away.
        """
        qos = self._channel.qos
        if not qos.prefetch_count or "can_consume" in qos.__dict__:
            return FETCH_LIMIT
        used = len(self.claim.held) - len(self.ahead) - min(self.finished(), WAITING)
        return int(qos.prefetch_count) - max(0, used)

    def _announce(self) -> None:
        self.claim.announce(self._channel.own, self._channel.consumed)
