"""Plain messages on pools of threads and processes: received without kombu and Celery between.

The channel fetches as ever and counts what it delivers; a message that is plain
(:mod:`cloche.worker.receiver`) becomes a request here, which Celery's worker gives to the pool.
Its body is decoded once: threads and processes get the arguments, not the text. Any other message
takes Celery's own way.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Any

from celery import Celery, Task, bootsteps, signals
from celery.app import task as task_module
from celery.app import trace as stock_trace
from celery.exceptions import TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state, strategy
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request

from cloche.worker.events import CurrentDispatcher
from cloche.worker.request import FetchedRequest, Setting, received_fields, request_class
from cloche.worker.state import collect_less, make_walkable
from cloche.worker.unpatched import defined_in, worker_is_unpatched

#: The strategy whose steps these are: tasks with others take Celery's way.
STRATEGY = "celery.worker.strategy:default"

#: Headers that make a message something else than a plain one.
_SPECIAL = ("eta", "expires", "compression", "stamped_headers")

# orjson would make floats of long integers.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

logger = get_logger("cloche.transport")


class PlainMessages:
    """Tells plain messages of one consumer from others and receives them."""

    #: Tasks whose messages can be plain: their requests' classes by name.
    _classes: Mapping[str, type[Any]] = {}
    _eventer: CurrentDispatcher

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        #: The channel's: the envelope in a text, None of a message with deaths behind it.
        self._read = consumer.task_consumer.channel.read
        accepted = consumer.task_consumer.accept
        self._decodes = accepted is None or "application/json" in accepted
        self._does_info = strategy.logger.isEnabledFor(logging.INFO)

    def _request(self, raw: bytes, tag: str) -> Any:
        """The request in a plain message, else None."""
        try:
            envelope = self._read(raw)
            headers, properties = envelope["headers"], envelope["properties"]
            made = self._classes.get(headers["task"])
            if made is None or not self._plain(envelope, headers, properties):
                return None
            body = a2b_base64(envelope["body"])
            if b'"__type__"' in body:
                return None
            payload = _decoded(body.decode())
            properties["delivery_tag"] = tag
            return made(envelope, payload)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration):
            return None  # the channel and Celery say what is wrong with it

    def _plain(self, envelope: Any, headers: Any, properties: Any) -> bool:
        """Whether all that Celery's way would do to it is done here."""
        consumer = self._consumer
        for name in _SPECIAL:
            if headers.get(name):
                return False
        return (
            envelope["content-type"] == "application/json"
            and envelope["content-encoding"] == "utf-8"
            and properties["body_encoding"] == "base64"
            and headers["id"] not in state.revoked
            and (consumer.disable_rate_limits or consumer.task_buckets[headers["task"]] is None)
        )

    def _receive(self, request: Any) -> None:
        """celery.worker.strategy.default: log, signal, event, state."""
        if self._does_info:
            context = {
                "id": request.id,
                "name": request.name,
                "args": request._argsrepr,
                "kwargs": request._kwargsrepr,
                "eta": None,
            }
            strategy.logger.info(stock_trace.LOG_RECEIVED, context, extra={"data": context})
        if signals.task_received.receivers:
            signals.task_received.send(sender=self._consumer, request=request)
        if self._eventer.enabled and request._task.send_events:
            self._eventer.send("task-received", **received_fields(request))
        state.task_reserved(request)
        for callback in self._consumer.on_task_message:
            callback(request)


def _decoded(text: str) -> Any:
    """As ``json.loads``, without the white space that no producer puts around a body."""
    value, end = _scan(text, 0)
    if end != len(text):
        raise ValueError("more than one value")
    return value


def is_stock(task: Task) -> bool:
    """Whether the task is received and requested as Celery does it."""
    kind = symbol_by_name(task.Request)
    ours = kind is Request or vars(kind).get("begins_directly", False)
    started = defined_in(type(task).start_strategy, task_module)
    return bool(task.Strategy == STRATEGY and ours and started) and worker_is_unpatched()


def receive_plainly(app: Celery) -> None:
    """Have the worker of ``app`` in this process do so."""
    app.steps["consumer"].add(PlainStep)


class ReceiverStep(bootsteps.StartStopStep):
    """After Celery's ``Tasks``, which has made the consumer and not yet begun to consume: puts a
    faster way from the channel to the pool beside Celery's."""

    requires = (Tasks,)
    #: The method or attribute of the channel by which it lets messages go that way.
    channel_offers: str
    #: Whether it is for pools that fetch on an event loop of their own.
    on_loop = False

    def start(self, consumer: Consumer) -> None:
        """A new connection: attach to its channel, if the transport, the pool and the settings
        allow it."""
        channel = consumer.task_consumer.channel
        if (
            hasattr(channel, self.channel_offers)
            and channel.direct_path
            and consumer.hub is not None
            and hasattr(consumer.pool, "loop") is self.on_loop
        ):
            make_walkable()
            collect_less(consumer.pool.limit)
            self.attach(consumer)

    def attach(self, consumer: Consumer) -> None:
        """Receive for the channel of ``consumer``."""
        raise NotImplementedError


class PlainStep(ReceiverStep):
    """For pools of threads and processes."""

    name = "cloche.worker.receiver.PlainStep"
    label = "PlainMessages"
    channel_offers = "take"
    _path: PlainPath | None = None

    def attach(self, consumer: Consumer) -> None:
        """Receive for the channel of ``consumer``."""
        self._path = PlainPath(consumer)
        consumer.task_consumer.channel.take = self._path.take

    def stop(self, consumer: Consumer) -> None:
        """The connection broke or the worker ends: what is still delivered is Celery's."""
        if self._path is not None:
            self._path.channel.take = None

    def info(self, consumer: Consumer) -> dict[str, Any]:
        """For ``inspect stats``: messages received here."""
        return {"plain_messages": self._path and self._path.received}


class PlainPath(PlainMessages):
    """What a consumer receives so, and what its requests ask of the transport."""

    def __init__(self, consumer: Consumer) -> None:
        super().__init__(consumer)
        self.channel = consumer.task_consumer.channel
        self._eventer = CurrentDispatcher(consumer)
        self._thread = threading.get_ident()
        setting = Setting(
            app=consumer.app,
            pool=consumer.pool,
            hostname=consumer.hostname,
            eventer=self._eventer,
            connection_errors=consumer.connection_errors,
            source=self,
        )
        self._classes = {
            name: request_class(task, setting, PlainRequest)
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

    def _plain(self, envelope: Any, headers: Any, properties: Any) -> bool:
        """Retries of what still runs here are the channel's, which lets them wait."""
        again = headers.get("retries") and headers["id"] in state.requests
        return not again and super()._plain(envelope, headers, properties)

    @property
    def _restoring(self) -> bool:
        """Whether acknowledgements have to restore the prefetch count, after a reconnection."""
        consumer = self._consumer
        return bool(consumer.restart_count > 0 and not consumer._maximum_prefetch_restored)

    # -- what requests ask, in any thread

    def ack(self, tag: str) -> None:
        """The message is done with."""
        if threading.get_ident() == self._thread:
            self.channel.qos.ack(tag)
        else:
            self.channel.qos.ack_from_thread(tag)
            self.channel.turn_soon()

    def reject(self, tag: str, requeue: bool) -> None:
        """Talks to the server: in the consumer's thread."""
        self._consumer.call_soon(self.channel.qos.reject, tag, requeue)

    def message(self, envelope: dict[str, Any]) -> Any:
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


class PlainRequest(FetchedRequest):
    """As pools of threads and processes call it: told by the pool, in whatever thread does it."""

    _source: PlainPath

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The body is about to run; in pools of this process it waits for this to return."""
        if pid == os.getpid():
            self._source.wait_if_doubtful()
        self.begins(pid, time.time() - (time.monotonic() - time_accepted))

    def execute_using_pool(self, pool: Any, **kwargs: Any) -> Any:
        """As Celery's; our pool of threads takes the request as it is."""
        run = getattr(pool, "run", None)
        if run is None or not self._app.use_fast_trace_task:
            return super().execute_using_pool(pool, **kwargs)  # type: ignore[misc]
        if self.revoked():
            raise TaskRevokedError(self.id)
        return run(self)
