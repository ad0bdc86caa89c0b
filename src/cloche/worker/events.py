"""Task events of a worker, collected for a moment, and the dispatcher that its requests see."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app import events as stock
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset
from celery.worker.consumer import Consumer
from kombu.asynchronous import get_event_loop

from cloche.broker.events import encoded

#: Seconds the first event of many waits for others.
BATCH_INTERVAL = 0.02

#: Events published in one message at most.
MAX_BATCH = 500

#: Seconds the offset of the local time zone is taken for granted.
OFFSET_SECONDS = 60


class BatchDispatcher(EventDispatcher):
    """Celery's, which flushes with every turn of the event loop and after 24 events."""

    on_send_buffered: Callable[[], Any] | None

    def __init__(self, *args: Any, buffer_limit: int = MAX_BATCH, **options: Any) -> None:
        super().__init__(*args, buffer_limit=buffer_limit, **options)
        self._tell = self.on_send_buffered
        if self._tell is not None and get_event_loop() is not None:
            self._tell = self._plan
        self._planned = False
        self._offset = (0.0, 0)

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        """Send or collect an event, as Celery's does."""
        if args or _SPECIAL & fields.keys() or type not in _OF_TASKS or not self.buffer_group:
            return super().send(type, *args, **fields)
        if self.enabled and not (self.groups and "task" not in self.groups):
            self._collect(type, fields)
        return None

    def _collect(self, type: str, fields: dict[str, Any]) -> None:
        now = time.time()
        fields.update(
            hostname=self.hostname,
            utcoffset=self._utcoffset(now),
            pid=self.pid,
            clock=self.clock.forward(),
            timestamp=now,
            type=type,
        )
        waiting = self._group_buffer["task"]
        waiting.append(fields)
        if len(waiting) >= self.buffer_limit:
            self.flush()
        elif self._tell is not None:
            self._tell()

    def _utcoffset(self, now: float) -> int:
        """Celery's, asked once a second."""
        until, hours = self._offset
        if now >= until:
            hours = utcoffset()
            self._offset = (now + 1, hours)
        return int(hours)

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        """As Celery's; a list of events is encoded here, several times faster.

        A heartbeat tells of now: one that cannot be sent is neither tried again, for which the
        event loop would stand still, deaf to signals, until the server is back, nor sent later.
        """
        if routing_key == _HEARTBEAT:
            super()._publish(event, producer, routing_key, **{**options, "retry": False})
            unsent = self._outbound_buffer
            if unsent and unsent[-1][1] == _HEARTBEAT:
                unsent.pop()
            return
        if type(event) is not list or self.serializer != "json" or producer is None:
            super()._publish(event, producer, routing_key, **options)
            return
        try:
            producer.publish(
                encoded(event).decode(),
                routing_key=routing_key,
                exchange=self.exchange.name,
                declare=[self.exchange],
                content_type="application/json",
                content_encoding="utf-8",
                headers=self.headers,
                delivery_mode=self.delivery_mode,
            )
        except Exception:
            if not self.buffer_while_offline:
                raise
            self._outbound_buffer.append((event, routing_key))

    def _plan(self) -> None:
        """From any thread: have all flushed a moment after the first."""
        loop: Any = None if self._planned else get_event_loop()
        if loop is not None:
            self._planned = True
            loop.call_soon(loop.call_later, BATCH_INTERVAL, self._on_time)

    def _on_time(self) -> None:
        self._planned = False
        self.flush()


_HEARTBEAT = "worker.heartbeat"

#: Arguments of ``send`` that are no fields of the event.
_SPECIAL = frozenset({"blind", "utcoffset", "retry", "retry_policy", "Event", "timestamp"})

#: Events whose fields are known to be plain.
_OF_TASKS = frozenset(
    {"task-received", "task-started", "task-succeeded", "task-failed", "task-retried"}
)


class Events(stock.Events):
    """``app.events`` with that dispatcher."""

    dispatcher_cls = BatchDispatcher


def collect_events(app: Celery) -> None:
    """Use it in this process, unless the application has a dispatcher of its own."""
    if type(app.events) is stock.Events and isinstance(app.events.dispatcher_cls, str):
        app.__dict__["events"] = Events(app=app)


class CurrentDispatcher:
    """Celery's event dispatcher of the moment: with each connection comes another.

    ``call`` has a function called where the dispatcher may be used.
    """

    def __init__(
        self,
        consumer: Consumer,
        call: Callable[[Callable[[], object]], object] = lambda send: send(),
    ) -> None:
        self._consumer = consumer
        self._call = call

    @property
    def enabled(self) -> bool:
        found = self._consumer.event_dispatcher
        return bool(found and found.enabled)

    def send(self, type: str, **fields: Any) -> None:
        """Send it, if anybody wants it."""
        if self.enabled:
            self._call(lambda: self._consumer.event_dispatcher.send(type, **fields))


class LoopEventer(CurrentDispatcher):
    """Events from any thread, published on the pool's loop: ``add(event)`` does that soon."""

    def __init__(self, consumer: Consumer, add: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(consumer)
        self._add = add
        self._pid = os.getpid()
        self._offset: tuple[float, int] = (0.0, 0)

    def send(self, type: str, **fields: Any) -> None:
        """As ``EventDispatcher.send`` for events of a buffered group."""
        dispatcher = self._consumer.event_dispatcher
        if not dispatcher or not dispatcher.enabled:
            return
        groups = dispatcher.groups
        if groups and type.partition("-")[0] not in groups:
            return
        fields["hostname"] = dispatcher.hostname
        fields["pid"] = self._pid
        fields["clock"] = dispatcher.clock.forward()
        fields["timestamp"] = now = time.time()
        fields["type"] = type
        at, offset = self._offset
        if now - at > OFFSET_SECONDS:
            offset = utcoffset()
            self._offset = (now, offset)
        fields["utcoffset"] = offset
        self._add(fields)
