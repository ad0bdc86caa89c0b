"""``task.delay`` without Celery's machinery for each call: the template of bulk publish, once.

:func:`quickly` makes an ``apply_async`` that asks here first; what cannot be done quickly is
left to Celery, so the meaning is the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import celery
from celery import signals
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from celery.backends.base import Backend
from kombu.exceptions import OperationalError
from kombu.serialization import registry
from kombu.utils.json import dumps

from cloche.broker import delayed
from cloche.broker.channel import Captured, Channel
from cloche.broker.outage import ERRORS
from cloche.broker.publish_outbox import Address, Outbox
from cloche.broker.publish_template import (
    REPR_LEVELS,
    REPR_LIMIT,
    SAMPLE,
    EventTemplate,
    NotTemplatableError,
    Template,
    check_arguments,
    new_ids,
)
from cloche.broker.results import needs_no_producer, subscribes
from cloche.running import task_here

#: Seconds a template is used before Celery makes a new one.
REFRESH = 60.0

#: Ids drawn from the kernel at once.
_IDS = 256


@dataclass(frozen=True, slots=True)
class _Ready:
    """Everything about a task's next message but its id and arguments.

    ``key``: what it was made under, see :func:`_key`.
    """

    outbox: Outbox
    address: Address
    template: Template
    event: EventTemplate | None
    topics: tuple[str, ...]
    subscribes: bool
    until: float
    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What is asked of an application's configuration with ``changes`` in it."""

    changes: dict[str, Any]
    eager: bool


class QuickPublisher:
    """Sends calls of one task that have no options of their own."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._ready: _Ready | None = None
        self._slow: tuple[Any, ...] | None = None
        self._slow_until = 0.0
        self._ids: list[str] = []
        self._found: _Settings | None = None

    def send(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Publish it; the task id, or None if Celery has to do it.

        Raises kombu's OperationalError, and TypeError where Celery would.
        """
        task = self._task
        app = task.app
        settings = self._settings(app)
        if settings.eager or _overheard() or _in_a_task(app):
            return None
        ready = self._prepared(args, kwargs, _key(task, app, settings))
        if ready is None:
            return None
        check_arguments(task, args, kwargs)
        task_id = self._next_id()
        try:
            _push(app, ready, task_id, args, kwargs)
        except ERRORS as error:
            self._ready = None
            if not app.conf.task_publish_retry:
                raise OperationalError(str(error)) from error
            # As Celery does: the same message again, until its policy gives up.
            celery.Task.apply_async(task, args, kwargs, task_id=task_id)
        return task_id

    def _settings(self, app: Any) -> _Settings:
        """Celery's configuration takes 5 µs to answer, comparing all of it with a copy 1 µs."""
        conf = app.conf
        found, changes = self._found, conf.maps[0]
        if found is None or found.changes != changes:
            found = _Settings(dict(changes), conf.task_always_eager)
            self._found = found
        return found

    def _next_id(self) -> str:
        try:
            return self._ids.pop()
        except IndexError:
            first, *self._ids = new_ids(_IDS)
            return first

    def _prepared(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: tuple[Any, ...]
    ) -> _Ready | None:
        ready, now = self._ready, time.monotonic()
        if ready is not None and now < ready.until and ready.key == key:
            return ready
        if now < self._slow_until and self._slow == key:
            return None
        ready = self._prepare(args, kwargs, key) if _plain_task(self._task) else None
        if ready is None:
            self._slow, self._slow_until = key, now + REFRESH
        self._ready = ready
        return ready

    def _prepare(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: tuple[Any, ...]
    ) -> _Ready | None:
        with self._task.app.producer_or_acquire() as producer:
            channel = producer.channel
            if not isinstance(channel, Channel) or not isinstance(channel.outbox, Outbox):
                return None
            messages, broadcasts = _capture(self._task, args, kwargs, producer)
            if len(messages) != 1 or len(broadcasts) > 1:
                return None
            queue, suffix, envelope = messages[0]
            if delayed.delay_of(envelope) or envelope["headers"].get("expires"):
                return None
            try:
                template = Template(envelope)
                event = EventTemplate(broadcasts[0][1]) if broadcasts else None
            except NotTemplatableError:
                return None
            if template.body(args, kwargs) != envelope["body"]:
                return None  # a serializer of the application's own
            topics = tuple(f"{channel.keys.prefix}{topic}" for topic in _topics(broadcasts))
            until = time.monotonic() + REFRESH
            outbox, address = channel.outbox, channel.outbox.address(queue, suffix)
            backend = self._task.app.backend
            listens = not self._task.ignore_result and subscribes(backend)
            return _Ready(outbox, address, template, event, topics, listens, until, key)


def _key(task: Any, app: Any, settings: _Settings) -> tuple[Any, ...]:
    """What a template depends on, as far as it may change while the process runs."""
    amqp = app.__dict__.get("amqp") or app.amqp  # Celery's properties take a lock
    queues = amqp.__dict__.get("queues")
    return (
        task.ignore_result,
        task.soft_time_limit,
        task.time_limit,
        settings,
        amqp.routes,
        amqp.queues if queues is None else queues,
        os.getpid(),
    )


def _in_a_task(app: Any) -> bool:
    """Whether a task runs here: then the message tells of its parent and root."""
    return task_here() is not None and bool(app.current_worker_task)


def _push(
    app: Any, ready: _Ready, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    template = ready.template
    values = template.values(task_id, args, kwargs, reply=app.thread_oid)
    if ready.subscribes:
        app.backend.on_task_call(None, task_id)
    broadcasts = []
    if ready.event is not None:
        event = ready.event.fill(values, app.clock.forward())
        broadcasts = [(topic, event) for topic in ready.topics]
    ready.outbox.push(ready.address, template.text(values), broadcasts)


def _topics(broadcasts: list[tuple[list[str], Any]]) -> list[str]:
    return broadcasts[0][0] if broadcasts else []


def _capture(
    task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], producer: Any
) -> tuple[list[Captured], list[tuple[list[str], Any]]]:
    """What Celery would send: messages and broadcasts."""
    messages: list[Captured] = []
    broadcasts: list[tuple[list[str], Any]] = []
    channel = producer.channel
    channel.captured, channel.captured_broadcasts = messages, broadcasts
    try:
        # Not task.apply_async: a subclass may do more in it, and has done so already.
        celery.Task.apply_async(task, args, kwargs, producer=producer, **SAMPLE)
    finally:
        channel.captured = channel.captured_broadcasts = None
    return messages, broadcasts


def _overheard() -> bool:
    """Whether somebody listens to publishing: they must hear of each, as Celery tells it."""
    return bool(
        signals.before_task_publish.receivers
        or signals.after_task_publish.receivers
        or signals.task_sent.receivers
    )


def _plain_task(task: Any) -> bool:
    """Whether Celery makes all messages of this task alike."""
    app = task.app
    kind = task.__class__  # of what a proxy stands for, too
    backend = type(app.backend)
    return bool(
        kind.shadow_name is celery.Task.shadow_name
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and not getattr(task, "__v2_compat__", False)
        and "send_task" not in app.__dict__
        and type(app).send_task is celery.Celery.send_task
        and type(app.amqp) is AMQP
        and (app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize) == (REPR_LIMIT, REPR_LIMIT)
        and app.conf.task_repr_maxlevels == REPR_LEVELS
        and type(app.amqp.router) is Router
        and all(type(route) is MapRoute for route in app.amqp.routes)
        and registry._encoders["json"].encoder is dumps
        # Others prepare for each result with the task's producer.
        and (
            task.ignore_result
            or backend.on_task_call is Backend.on_task_call
            or needs_no_producer(app.backend)
        )
    )


def quickly(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``apply_async`` for a task class: quick where that is possible, else ``stock``."""

    def apply_async(
        self: Any, args: Any = None, kwargs: Any = None, *others: Any, **options: Any
    ) -> Any:
        if (
            others
            or options
            or type(args) not in _SEQUENCES
            or type(kwargs) not in _MAPPINGS
            or _crossed(self.soft_time_limit, self.time_limit)
        ):
            return stock(self, args, kwargs, *others, **options)
        publisher = self.__dict__.get("_cloche_quick")
        if publisher is None:
            publisher = self.__dict__["_cloche_quick"] = QuickPublisher(self)
        task_id = publisher.send(args or (), kwargs or {})
        if task_id is None:
            return stock(self, args, kwargs)
        result = self.AsyncResult(task_id)
        result.ignored = self.ignore_result
        return result

    apply_async.__doc__ = stock.__doc__
    apply_async.__dict__["cloche_quick"] = True
    return apply_async


def _crossed(soft: float | None, hard: float | None) -> bool:
    """Whether Celery will refuse these time limits."""
    return bool(soft and hard and soft > hard)


_SEQUENCES = (tuple, list, type(None))
_MAPPINGS = (dict, type(None))
