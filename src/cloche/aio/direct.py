"""The direct path: from a fetched batch to the pool, on the pool's own loop.

Celery's consumer stays as it is. What it would do for a plain message between the broker and
the pool (celery/worker/strategy.py) happens here, in the same order, without its thread, its
second decoding and its round trips. Any message that is not plain goes back to the channel
and takes Celery's own way: delayed, rate-limited, expiring or revoked tasks, functions,
other serializers, older protocols, whatever cannot be read.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Protocol

from celery.utils.log import get_logger
from celery.worker import state

from cloche.aio.direct_events import Eventer, HubEventer
from cloche.aio.direct_hub import HubCalls
from cloche.aio.direct_plain import PlainMessages, is_stock
from cloche.aio.direct_request import Setting, request_class
from cloche.aio.direct_store import BatchStore
from cloche.aio.tracer import Trace, build, is_coroutine_task

logger = get_logger("cloche.aio")

#: Seconds the last results and events may take.
PATIENCE = 15


class Fetched(Protocol):
    """A message in flight: its field in the server's hash, its queue, its text."""

    field: str
    queue: str
    raw: bytes


class DirectPath(PlainMessages):
    """What a consumer with the direct path has besides Celery's. One per connection."""

    def __init__(self, consumer: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(consumer)
        self._loop = loop
        self._hub = HubCalls(consumer.hub)
        channel = consumer.task_consumer.channel
        self._path = channel.fetch_directly(loop, self.deliver)
        self._events = _event_writer(consumer.event_dispatcher, loop)
        self._eventer: Any
        if self._events is not None:
            self._eventer = Eventer(lambda: consumer.event_dispatcher, self._events.add)
        else:
            self._eventer = HubEventer(lambda: consumer.event_dispatcher, self._hub.call)
        self._setting = Setting(
            app=consumer.app,
            pool=consumer.pool,
            hostname=consumer.hostname,
            eventer=self._eventer,
            connection_errors=consumer.connection_errors,
            line=self,
        )
        self._traces: dict[str, Trace] = {}
        self._store = BatchStore(consumer.pool.writers)
        self._path.finished = lambda: self._store.waiting
        self._store.on_waiting = self._path.room
        self._open: dict[str, Any] = {}
        #: Messages that took the direct way, and that took Celery's.
        self.plain = self.others = 0

    # -- life, in the consumer's thread

    def start(self) -> None:
        """Fetch from now on."""
        consumer = self._consumer
        self._classes = {
            name: request_class(task, self._setting)
            for name, task in consumer.app.tasks.items()
            if self._decodes and is_stock(task) and is_coroutine_task(task)
        }
        self._traces = {
            name: build(consumer.app.tasks[name], consumer.app, consumer.hostname, self._store)
            for name in self._classes
        }
        self._path.claim.on_lost.append(self._lost)
        self._path.start()

    def quiet(self) -> None:
        """Fetch no more; what was fetched and not started goes back to its queue."""
        self._path.quiet()
        self._hub.run()

    def drop_unstarted(self) -> None:
        """What Celery's consumer has dropped with its connection goes back to its queue."""
        tags = [tag for tag, one in list(self._open.items()) if one.time_start is None]
        for tag in tags:
            self._open.pop(tag, None)
        if tags:
            self._path.give_back(tags)

    def stop(self) -> None:
        """The end."""
        self._path.claim.on_lost.remove(self._lost)
        self._path.stop()
        self._hub.close()
        for part in (self._store, self._events):
            if part is not None:
                asyncio.run_coroutine_threadsafe(part.stop(), self._loop).result(PATIENCE)

    # -- a batch, in the loop's thread

    def deliver(self, batch: list[Any]) -> None:
        """Start what is plain; the channel gets the others."""
        others = []
        for one in batch:
            request = self._opened(one)
            if request is None:
                others.append(one)
                continue
            if self._follows(request, one):
                continue
            self._open[request.tag] = request
            self.plain += 1
            try:
                self._receive(request)
                self._hand_over(request)
            except Exception:
                logger.exception("a message could not be handed to the pool: %r", request)
        if others:
            self.others += len(others)
            self._hub.call(lambda: self._path.back(others))

    def _follows(self, request: Any, one: Any) -> bool:
        """Whether it has to wait for a run of the same task here: it is its retry.

        A retry without a countdown comes back within a millisecond, before it is told that
        the run before it has ended that way.
        """
        before = state.requests.get(request.id)
        if before is None or before.time_start is None or not isinstance(before, type(request)):
            return False
        followed: bool = before.take_follower(one)
        return followed

    @property
    def doubtful(self) -> bool:
        """Whether the lease may be lost: who begins now has to wait until that is known."""
        return bool(self._path.doubtful)

    def gone(self, tag: str) -> None:
        """Its run is over."""
        self._open.pop(tag, None)

    def follow(self, followers: list[Any]) -> None:
        """What they waited for has ended. From any thread."""
        self._loop.call_soon_threadsafe(self.deliver, followers)

    def _opened(self, one: Any) -> Any:
        """The request in a plain message, else None."""
        raw = one.raw
        if len(raw) > self._path.most_bytes or one.queue not in self._path.queues:
            return None
        return self._request(raw, self._path.tag(one.field))

    def _hand_over(self, request: Any) -> None:
        """celery.worker.request.Request.execute_using_pool."""
        job = self._consumer.pool.direct(request, self._traces[request._type])
        request._apply_result = weakref.ref(job)

    # -- what requests ask of us, in any thread

    def settle(self, tag: str) -> None:
        """The message is done with."""
        self._open.pop(tag, None)
        self._path.settle(tag)

    def reject(self, tag: str, requeue: bool) -> None:
        """Talks to the server, so never in the loop's thread."""
        self._open.pop(tag, None)
        self._hub.call(lambda: self._path.give_back([tag]) if requeue else self._path.refuse(tag))

    def _lost(self, taken: frozenset[str]) -> None:
        """The lease was lost: these are somebody else's. What runs goes on, and is fenced."""
        for tag in taken:
            self._open.pop(tag, None)

    def message(self, envelope: dict[str, Any]) -> Any:
        """kombu's view of it."""
        return self._path.message(envelope)


def _event_writer(dispatcher: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """What publishes the dispatcher's events on the loop, if their transport can."""
    if dispatcher is None or dispatcher.connection is None or dispatcher.serializer != "json":
        return None
    make = getattr(dispatcher.connection.default_channel, "event_writer", None)
    return make and make(dispatcher, loop)
