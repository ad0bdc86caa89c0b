"""Task events of a busy worker, collected for a moment before they are published."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app import events as stock
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset
from kombu.asynchronous import get_event_loop

from cloche.broker.direct_events import encoded

#: Seconds the first event of many waits for others.
MOMENT = 0.02

#: Events published in one message at most.
MOST = 500


class Dispatcher(EventDispatcher):
    """Celery's, which flushes with every turn of the event loop and after 24 events."""

    on_send_buffered: Callable[[], Any] | None

    def __init__(self, *args: Any, buffer_limit: int = MOST, **options: Any) -> None:
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
        """As Celery's; a list of events is encoded here, several times faster."""
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
            loop.call_soon(loop.call_later, MOMENT, self._on_time)

    def _on_time(self) -> None:
        self._planned = False
        self.flush()


#: Arguments of ``send`` that are no fields of the event.
_SPECIAL = frozenset({"blind", "utcoffset", "retry", "retry_policy", "Event", "timestamp"})

#: Events whose fields are known to be plain.
_OF_TASKS = frozenset(
    {"task-received", "task-started", "task-succeeded", "task-failed", "task-retried"}
)


class Events(stock.Events):
    """``app.events`` with that dispatcher."""

    dispatcher_cls = Dispatcher


def collect_events(app: Celery) -> None:
    """Use it in this process, unless the application has a dispatcher of its own."""
    if type(app.events) is stock.Events and isinstance(app.events.dispatcher_cls, str):
        app.__dict__["events"] = Events(app=app)
