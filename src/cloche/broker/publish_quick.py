"""``task.delay`` without Celery's machinery for each call: the template of bulk publish, once.

For a task class whose ``apply_async`` asks here first; what cannot be done quickly is left to
Celery, so the meaning is the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import signals

from cloche.broker import delayed
from cloche.broker.channel import Captured, Channel
from cloche.broker.publish_outbox import Outbox
from cloche.broker.publish_template import (
    SAMPLE,
    NotTemplatableError,
    Template,
    check_arguments,
    new_ids,
)

#: Seconds a template is used before Celery makes a new one: settings and routes may change.
REFRESH = 60.0

#: Ids drawn from the kernel at once.
_IDS = 256


@dataclass(frozen=True, slots=True)
class _Ready:
    """Everything about a task's next message but its id and arguments."""

    outbox: Outbox
    queue: str
    suffix: str
    template: Template
    until: float
    pid: int


class QuickPublisher:
    """Sends calls of one task that have no options of their own."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._ready: _Ready | None = None
        self._slow_until = 0.0
        self._ids: list[str] = []

    def send(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Publish it; the task id, or None if Celery has to do it.

        Raises what redis-py raises, and TypeError where Celery would."""
        app = self._task.app
        if (
            signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or app.conf.task_send_sent_event
            or app.conf.task_always_eager
            or app.current_worker_task
        ):
            return None
        ready = self._prepared(args, kwargs)
        if ready is None:
            return None
        check_arguments(self._task, args, kwargs)
        task_id = self._next_id()
        text = ready.template.fill(task_id, args, kwargs)
        ready.outbox.push(ready.queue, ready.suffix, text)
        return task_id

    def _next_id(self) -> str:
        try:
            return self._ids.pop()
        except IndexError:
            first, *self._ids = new_ids(_IDS)
            return first

    def _prepared(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ready | None:
        ready, now = self._ready, time.monotonic()
        if ready is not None and now < ready.until and ready.pid == os.getpid():
            return ready
        if now < self._slow_until:
            return None
        self._ready = self._prepare(args, kwargs)
        if self._ready is None:
            self._slow_until = now + REFRESH
        return self._ready

    def _prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ready | None:
        with self._task.app.producer_or_acquire() as producer:
            channel = producer.channel
            if not isinstance(channel, Channel) or not isinstance(channel.outbox, Outbox):
                return None
            captured: list[Captured] = []
            channel.captured = captured
            try:
                self._task.apply_async(args, kwargs, producer=producer, **SAMPLE)
            finally:
                channel.captured = None
            if len(captured) != 1 or delayed.delay_of(captured[0][2]):
                return None
            queue, suffix, envelope = captured[0]
            try:
                template = Template(envelope)
            except NotTemplatableError:
                return None
            until = time.monotonic() + REFRESH
            return _Ready(channel.outbox, queue, suffix, template, until, os.getpid())
