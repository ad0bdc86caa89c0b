"""Messages fetched before they may be delivered, and when they are.

Where tasks are short, a fetch brings more than the prefetch limit allows to deliver
(:attr:`cloche.broker.qos.QoS.ahead`). The rest waits in the channel: Celery knows nothing of it, so
it can go back to its queue, unmarked, when the tasks before it turn out to be long.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kombu.transport.redis import Empty

from cloche.broker import results_later
from cloche.broker.fetch import Fetched
from cloche.broker.outage import ERRORS

#: Seconds after which what was fetched ahead and may not be delivered goes back to its queue.
AHEAD_LIMIT = 0.1

#: Seconds that may be spent on delivering without letting the event loop run. The solo pool runs
#: each task within its delivery; its acknowledgement is only sent when the loop runs again.
DELIVERY_BUDGET = 0.005


class Ahead:
    """What a consuming channel does with them."""

    #: What fetches in this channel's place, if anything: :class:`cloche.broker.direct.Direct`.
    direct: Any = None

    # What it uses of the rest of the channel.
    active_queues: list[str]
    connection: Any
    claim: Any
    deliver_some: Callable[[], bool]
    failed: Callable[[BaseException], None]
    give_back: Any
    wake_for_acks: Callable[[], None]
    inbox: deque[Fetched]
    qos: Any
    tag: Any

    def start_ahead(self) -> None:
        """Set up."""
        self.fetched_at = 0.0
        self.delivering = False
        self.spent = 0.0
        self._more: tuple[socket.socket, socket.socket] | None = None
        self._wake_at = 0.0
        self._called = False
        results_later.listen(self)

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
            self.claim.let_go(one.field for one in unseen)  # the keeper returns them
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
