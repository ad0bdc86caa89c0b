"""What a channel has delivered and not yet settled, within its prefetch limit."""

from __future__ import annotations

import time
from typing import Any

from kombu.transport import virtual

from cloche.broker.lease.lease import field_of
from cloche.broker.results import deferred as results_later
from cloche.process_local import here

#: Messages fetched at once where the consumer set no limit.
FETCH_LIMIT = 100

#: Seconds of work fetched ahead of the prefetch limit, and no more than FETCH_LIMIT messages.
AHEAD = 0.02

#: Seconds over which it is measured how many tasks end.
WINDOW = 0.1


class QoS(virtual.QoS):
    """kombu's bookkeeping; settling goes to the channel's lease."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._process = here()
        self._since = time.monotonic()
        self._settled = 0
        self._rate = 0.0

    @property
    def used(self) -> int:
        """Messages delivered whose tasks have not run; those that only wait for their result
        to be stored hold no place."""
        return max(0, len(self._delivered) - len(self._dirty) - results_later.finished())

    @property
    def ahead(self) -> int:
        """How many messages may be fetched before they may be delivered.

        As many as ended lately within AHEAD seconds: none where tasks take long.
        """
        channel = self.channel
        if channel.worker is None or channel.wake_later is None or "can_consume" in self.__dict__:
            return 0
        seconds = time.monotonic() - self._since
        if seconds >= WINDOW:
            self._rate = self._settled / seconds
            self._since, self._settled = time.monotonic(), 0
        return min(FETCH_LIMIT, int(self._rate * AHEAD))

    def capacity(self) -> int:
        """How many messages may be fetched now."""
        if not self.can_consume():
            return 0
        if "can_consume" in self.__dict__:
            # Celery's worker_disable_prefetch replaces the method by one that answers for one
            # message at a time (celery/worker/consumer/tasks.py).
            return 1
        if self.channel.worker is None:
            return 0 if self.channel.waiting else 1
        if not self.prefetch_count:
            return FETCH_LIMIT
        free: int = self.prefetch_count + self.ahead - self.used - self.channel.waiting
        return max(0, min(FETCH_LIMIT, free))

    def can_consume(self) -> bool:
        """Whether one more message may be fetched."""
        limit: int = self.prefetch_count
        return not limit or self.used + self.channel.waiting < limit + self.ahead

    def may_deliver(self) -> bool:
        """Whether one more message may be delivered."""
        return not self.prefetch_count or self.used < self.prefetch_count

    def ack_from_thread(self, delivery_tag: str) -> None:
        """The message is done with: from any thread. Its place is filled when the loop turns."""
        self.channel.own_lease.ack(delivery_tag)
        self._settled += 1
        self._free(delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """The message is done with."""
        if not self.channel.own_lease.acks:
            self.channel.wake_for_acks()
        self.ack_from_thread(delivery_tag)
        if self.channel.inbox:
            self.channel.deliver_next()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """To the back of its queue, as from kombu, or to the dead letters."""
        if not field_of(delivery_tag)[1]:  # kombu's BRPOP or a subscription brought it
            if requeue and delivery_tag in self._delivered:
                self.channel._restore_at_beginning(self._delivered[delivery_tag])
        elif requeue:
            self.channel.give_back([delivery_tag], last=True)
        else:
            self.channel.refuse(delivery_tag)
        self._free(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Free its place without telling the server."""
        self._free(delivery_tag)

    def _free(self, delivery_tag: str) -> None:
        self._quick_ack(delivery_tag)
        if self.channel.direct is not None:  # it fetches elsewhere, and waits for a place
            self.channel.direct.freed()

    def orphan(self) -> None:
        """The channel closes, the process goes on: what is in use stays leased."""
        self._on_collect.cancel()
        self._flush()
        for tag, message in self._delivered.items():
            self.channel.own_lease.adopt(tag, message)
        self._delivered.clear()

    def restore_unacked(self) -> list[Any]:
        """Everything unsettled goes back to the front of its queue."""
        self._flush()
        tags = list(self._delivered)
        self._delivered.clear()
        if tags:
            self.channel.give_back(tags)
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The same at the end of the channel, and never in a forked child."""
        if self._process is here() and self.channel.has_lease:
            super().restore_unacked_once(stderr)
        else:
            self._on_collect.cancel()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: dead consumers are the reaper's."""
