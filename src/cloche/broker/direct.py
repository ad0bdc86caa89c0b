"""The direct path: a channel whose messages are fetched on an asyncio loop.

The channel stays what Celery's consumer talks to: it declares, consumes, cancels, keeps the
prefetch count and settles. Only fetching moves to the loop, where most messages go straight to
the pool; the others come back to the channel, which delivers them as if it had fetched them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from cloche.broker.channel import Channel
from cloche.broker.direct_intake import Deliver, Intake
from cloche.broker.fetch import Fetched
from cloche.broker.outage import ERRORS
from cloche.broker.qos import FETCH_LIMIT

#: Seconds a fetch on its way may take when fetching ends.
PATIENCE = 10


class Direct:
    """Fetching for ``channel`` on ``loop``, whose thread is not the channel's.

    ``deliver`` gets each batch in the loop's thread and must not raise.
    """

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._channel = channel
        self._loop = loop
        self._deliver = deliver
        self.claim = channel.claim
        self.keys = channel.keys
        self.intake: Intake = self._in_loop(self._new_intake())

    # -- the channel's thread

    def start(self) -> None:
        """Fetch in the channel's place from now on."""
        self._channel.direct = self
        self._loop.call_soon_threadsafe(self.intake.start)

    def consume(self, queues: Iterable[str]) -> None:
        """The channel consumes these queues now."""
        shared = self._channel.queue_order_strategy == "round_robin"
        self._loop.call_soon_threadsafe(
            lambda names=tuple(queues): self.intake.consume(names, shared=shared)
        )

    def quiet(self) -> None:
        """Fetch no more. What was fetched has been delivered when this returns."""
        if self._channel.direct is self:
            self._channel.direct = None
        self._in_loop(self.intake.quiet())

    def stop(self) -> None:
        """The end: what is settled has been told to the server, if it can be reached."""
        self._in_loop(self.intake.stop())

    def back(self, fetched: Iterable[Fetched]) -> None:
        """The channel delivers these after all."""
        self._channel.inbox.extend(fetched)
        self._channel.deliver_soon()

    def give_back(self, fetched: Iterable[Fetched]) -> None:
        """Back to the front of their queues; by the lease's keeper if the server is away."""
        fields = [one.field for one in fetched]
        try:
            self._channel.give_back([self.tag(field) for field in fields])
        except ERRORS:
            self.claim.let_go(fields)

    def _in_loop(self, work: Any) -> Any:
        if threading.get_ident() == getattr(self._loop, "_thread_id", None):
            raise RuntimeError("the loop's thread would wait for itself")
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(PATIENCE)

    async def _new_intake(self) -> Intake:
        channel = self._channel
        return Intake(
            channel.keys, self.claim, channel.pool, self.capacity, self._deliver, self._announce
        )

    # -- the loop's thread

    def tag(self, field: str) -> str:
        """The delivery tag of a message just fetched."""
        return f"{self.claim.consumer}/{field}"

    def capacity(self) -> int:
        """How many messages may be fetched now: what the prefetch count leaves."""
        qos = self._channel.qos
        if not qos.can_consume():
            return 0
        if "can_consume" in qos.__dict__:  # worker_disable_prefetch, see qos.py
            return 1
        limit: int = qos.prefetch_count
        return min(FETCH_LIMIT, limit - len(self.claim.held)) if limit else FETCH_LIMIT

    def _announce(self) -> None:
        self.claim.announce(self._channel.own, self._channel.consumed)


#: What makes a :class:`Direct` of the same shape, for those who must not import this package.
Make = Callable[[asyncio.AbstractEventLoop, Deliver], Direct]
