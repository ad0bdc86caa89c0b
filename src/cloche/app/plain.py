"""Plain messages on pools of threads and processes: received without kombu and Celery between.

The channel fetches as ever and counts what it delivers; a message that is plain
(:mod:`cloche.aio.direct_plain`) becomes a request here, which Celery's worker gives to the pool.
Its body is decoded once: threads and processes get the arguments, not the text. Any other message
takes Celery's own way.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery import Celery, bootsteps
from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger
from celery.worker.consumer.tasks import Tasks

from cloche.aio.direct_plain import PlainMessages, is_stock
from cloche.aio.direct_request import Setting, request_class
from cloche.aio.direct_state import collect_less, make_walkable

logger = get_logger("cloche.transport")


def receive_plainly(app: Celery) -> None:
    """Have the worker of ``app`` in this process do so."""
    app.steps["consumer"].add(PlainStep)


class PlainStep(bootsteps.StartStopStep):
    """After Celery's ``Tasks``, which has made the consumer and not yet begun to consume."""

    requires = (Tasks,)
    name = "cloche.app.plain.PlainStep"
    label = "PlainMessages"

    def __init__(self, consumer: Any, **options: Any) -> None:
        self._path: PlainPath | None = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """A new connection: receive for its channel."""
        if not offered(consumer):
            return
        make_walkable()
        collect_less(consumer.pool.limit)
        self._path = PlainPath(consumer)
        consumer.task_consumer.channel.take = self._path.take

    def stop(self, consumer: Any) -> None:
        """The connection broke or the worker ends: what is still delivered is Celery's."""
        if self._path is not None:
            self._path.channel.take = None

    def info(self, consumer: Any) -> dict[str, Any]:
        """For ``inspect stats``: messages received here."""
        return {"plain_messages": self._path and self._path.received}


def offered(consumer: Any) -> bool:
    """Whether the transport can do it, its loop runs, and the pool does not fetch itself."""
    channel = consumer.task_consumer.channel
    return (
        hasattr(channel, "take")
        and channel.direct_path
        and consumer.hub is not None
        and not hasattr(consumer.pool, "loop")
    )


class PlainPath(PlainMessages):
    """What a consumer receives so, and what its requests ask of the transport."""

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer)
        self.channel = consumer.task_consumer.channel
        self._eventer = Dispatching(consumer)
        self._thread = threading.get_ident()
        setting = Setting(
            app=consumer.app,
            pool=consumer.pool,
            hostname=consumer.hostname,
            eventer=self._eventer,
            connection_errors=consumer.connection_errors,
            line=self,
        )
        self._classes = {
            name: _synchronous(request_class(task, setting), self)
            for name, task in consumer.app.tasks.items()
            if self._decodes and is_stock(task)
        }
        self.received = 0

    def take(self, raw: bytes, tag: str) -> bool:
        """Receive the message, if it is plain."""
        if self._restoring:
            return False
        request = self._request(raw, tag)
        if request is None:
            return False
        self.received += 1
        self.channel.qos.append(request, tag)
        self._receive(request)
        self._consumer.on_task_request(request)
        return True

    @property
    def _restoring(self) -> bool:
        """Whether acknowledgements have to restore the prefetch count, after a reconnection."""
        consumer = self._consumer
        return bool(consumer.restart_count > 0 and not consumer._maximum_prefetch_restored)

    # -- what requests ask, in any thread

    def settle(self, tag: str) -> None:
        """The message is done with."""
        if threading.get_ident() == self._thread:
            self.channel.qos.ack(tag)
        else:
            self.channel.qos.settle(tag)
            self.channel.turn_soon()

    def reject(self, tag: str, requeue: bool) -> None:
        """Talks to the server: in the consumer's thread."""
        self._consumer.call_soon(self.channel.qos.reject, tag, requeue)

    def message(self, envelope: dict[str, Any]) -> Any:
        """kombu's view of it."""
        return self.channel.Message(envelope, channel=self.channel)

    def wait_if_doubtful(self) -> None:
        """Before work begins in this process; see :meth:`Lease.wait_if_doubtful`."""
        self.channel.wait_if_doubtful()

    @property
    def doubtful(self) -> bool:
        """Who begins waits by himself."""
        return False

    def follow(self, followers: list[Any]) -> None:
        """No message waits for another one's end here."""

    def gone(self, tag: str) -> None:
        """Nothing is kept."""


class Dispatching:
    """Celery's event dispatcher of the moment: with each connection comes another."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    @property
    def enabled(self) -> bool:
        """Whether anybody wants events."""
        found = self._consumer.event_dispatcher
        return bool(found and found.enabled)

    def send(self, type: str, **fields: Any) -> None:
        """Send it, if anybody wants it."""
        found = self._consumer.event_dispatcher
        if found and found.enabled:
            found.send(type, **fields)


def _synchronous(base: Any, path: PlainPath) -> type[Any]:
    """The requests of one task as pools of threads and processes call them."""

    class PlainRequest(base):
        """Told by the pool, in whatever thread that does it."""

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            """The body is about to run; in pools of this process it waits for this to return."""
            if pid == os.getpid():
                path.wait_if_doubtful()
            self.begins(pid, time.time() - (time.monotonic() - time_accepted))

        def execute_using_pool(self, pool: Any, **kwargs: Any) -> Any:
            """As Celery's; our pool of threads takes the request as it is."""
            run = getattr(pool, "run", None)
            if run is None or not self._app.use_fast_trace_task:
                return super().execute_using_pool(pool, **kwargs)
            if self.revoked():
                raise TaskRevokedError(self.id)
            return run(self)

    PlainRequest.__qualname__ = f"PlainRequest({base._type})"
    return PlainRequest
