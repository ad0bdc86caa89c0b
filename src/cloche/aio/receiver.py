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
from collections.abc import Callable
from typing import Any

from celery import Task, bootsteps, states
from celery.app.task import Context
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.consumer import Consumer

from cloche.aio.executor import Writers
from cloche.aio.task import is_coroutine_task
from cloche.aio.tracer import Trace, build
from cloche.worker.consumer_calls import ConsumerCalls
from cloche.worker.events import CurrentDispatcher, LoopEventer
from cloche.worker.receiver import PlainMessages, ReceiverStep, is_stock
from cloche.worker.request import Setting, request_class
from cloche.worker.unpatched import runs_unpatched

logger = get_logger("cloche.aio")

#: Seconds the last results and events may take.
STOP_TIMEOUT = 15


class BatchStore:
    """A :class:`cloche.aio.executor.ResultStore`; one per pool, on its loop.

    Result backends with a ``writer()`` get their successes through it; all else about
    results, and backends without one, goes through the pool's threads.
    """

    def __init__(self, writers: Writers) -> None:
        self._writers = writers
        #: Runs that are over but for their result, which is on its way.
        self.waiting = 0
        #: Called when there is one more of them.
        self.on_waiting: Callable[[], object] = _nothing
        self._by_task: dict[str, Any] = {}
        self._by_backend: dict[Any, Any] = {}

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._writers.call(function, *args)

    async def done(self, task: Task, context: Context, retval: Any, publish: bool) -> None:
        """Celery's ``mark_as_done``."""
        writer = self._writer(task)
        if writer is None or context.chord:
            await self._writers.done(task, context, retval, publish)
        elif publish:
            self.waiting += 1
            self.on_waiting()
            try:
                await writer.store(context.id, retval, states.SUCCESS, request=context)
            finally:
                self.waiting -= 1

    def _writer(self, task: Task) -> Any:
        """The writer of the task's backend, which may be its own; None: it goes through threads."""
        try:
            return self._by_task[task.name]
        except KeyError:
            backend = task.backend
            make = getattr(backend, "writer", None)
            if make is None or backend.always_retry:
                found = None
            else:
                found = self._by_backend.get(backend) or make()
                self._by_backend[backend] = found
            self._by_task[task.name] = found
            return found

    async def stop(self) -> None:
        for writer in self._by_backend.values():
            await writer.stop()


def _nothing() -> None:
    """Nobody asked to be told."""


class DirectPath(PlainMessages):
    """What a consumer with the direct path has besides Celery's. One per connection."""

    def __init__(self, consumer: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(consumer)
        self._loop = loop
        self._hub = ConsumerCalls()
        self._hub.register(consumer.hub)
        channel = consumer.task_consumer.channel
        self._path = channel.fetch_directly(loop, self.deliver)
        self._events = _event_writer(consumer.event_dispatcher, loop)
        self._eventer: CurrentDispatcher
        if self._events is not None:
            self._eventer = LoopEventer(consumer, self._events.add)
        else:
            self._eventer = CurrentDispatcher(consumer, self._hub.put)
        self._setting = Setting(
            app=consumer.app,
            pool=consumer.pool,
            hostname=consumer.hostname,
            eventer=self._eventer,
            connection_errors=consumer.connection_errors,
            source=self,
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
        consumer = self._consumer
        self._classes = {
            name: request_class(task, self._setting)
            for name, task in consumer.app.tasks.items()
            if self._decodes and is_stock(task) and is_coroutine_task(task) and runs_unpatched(task)
        }
        self._traces = {
            name: build(consumer.app.tasks[name], consumer.app, consumer.hostname, self._store)
            for name in self._classes
        }
        self._path.lease.on_lost.append(self._lost)
        self._path.start()

    def quiet(self) -> None:
        """Fetch no more; what was fetched and not started goes back to its queue."""
        self._path.quiet()
        self._hub.drain()

    def drop_unstarted(self) -> None:
        """What Celery's consumer has dropped with its connection goes back to its queue."""
        tags = [tag for tag, one in list(self._open.items()) if one.time_start is None]
        for tag in tags:
            self._open.pop(tag, None)
        if tags:
            self._path.give_back(tags)

    def stop(self) -> None:
        self._path.lease.on_lost.remove(self._lost)
        self._path.stop()
        self._hub.drain()
        self._hub.close()
        for part in (self._store, self._events):
            if part is not None:
                asyncio.run_coroutine_threadsafe(part.stop(), self._loop).result(STOP_TIMEOUT)

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
            self._hub.put(lambda: self._path.back(others))

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

    def ack(self, tag: str) -> None:
        """The message is done with."""
        self._open.pop(tag, None)
        self._path.ack(tag)

    def reject(self, tag: str, requeue: bool) -> None:
        """Talks to the server, so never in the loop's thread."""
        self._open.pop(tag, None)
        path = self._path
        self._hub.put(lambda: path.give_back([tag], last=True) if requeue else path.refuse(tag))

    def _lost(self, taken: frozenset[str]) -> None:
        """The lease was lost: these are somebody else's. What runs goes on, and is fenced."""
        for tag in taken:
            self._open.pop(tag, None)

    def message(self, envelope: dict[str, Any]) -> Any:
        return self._path.message(envelope)


def _event_writer(dispatcher: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """What publishes the dispatcher's events on the loop, if their transport can."""
    if dispatcher is None or dispatcher.connection is None or dispatcher.serializer != "json":
        return None
    make = getattr(dispatcher.connection.default_channel, "event_writer", None)
    return make and make(dispatcher, loop)


class DirectStep(ReceiverStep):
    """For the pool of coroutines, whose loop fetches by itself."""

    name = "cloche.aio.receiver.DirectStep"
    label = "DirectPath"
    channel_offers = "fetch_directly"
    on_loop = True
    _path: DirectPath | None = None

    def start(self, consumer: Consumer) -> None:
        consumer.pool.consumer_begins()
        super().start(consumer)

    def attach(self, consumer: Consumer) -> None:
        """Fetch for the channel of ``consumer``."""
        self._path = DirectPath(consumer, consumer.pool.loop)
        self._path.start()
        logger.debug("tasks are fetched directly into the pool's loop")

    def stop(self, consumer: Consumer) -> None:
        """The connection broke or the worker ends: fetch no more."""
        if self._path is not None:
            self._path.quiet()
            if consumer.blueprint.state not in (bootsteps.CLOSE, bootsteps.TERMINATE):
                self._path.drop_unstarted()
                self._end()

    def shutdown(self, consumer: Consumer) -> None:
        """After the pool has ended: send what is left to send."""
        self._end()

    def _end(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            path.stop()

    def info(self, consumer: Consumer) -> dict[str, Any]:
        """For ``inspect stats``: messages that came directly, and that took Celery's way."""
        path = self._path
        return {"direct_path": path and {"plain": path.plain, "others": path.others}}
