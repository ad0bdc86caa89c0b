"""``task.delay`` without Celery's machinery for each call: the template of bulk publish, once.

:func:`send_quickly` is asked first; what it cannot do is left to Celery, so the meaning is the
same.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import celery
from celery import Celery, Task, signals
from celery.backends.base import Backend
from kombu import Producer
from kombu.exceptions import OperationalError

from cloche.broker import delayed
from cloche.broker.channel import Channel
from cloche.broker.connection.outage import ERRORS
from cloche.broker.publish.outbox import Destination, Outbox
from cloche.broker.publish.stock_path import amqp_of, functions, is_celerys
from cloche.broker.publish.template import (
    SAMPLE,
    Capture,
    EventTemplate,
    NotTemplatableError,
    Template,
    Values,
    capturing,
    check_arguments,
    new_id,
)
from cloche.broker.results.redis_backend import needs_no_producer, subscribes
from cloche.process_local import Process, ProcessLocal, here
from cloche.running import task_here

#: Seconds a template is used before Celery makes a new one.
REFRESH = 60.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """Everything about a task's next message but its id and arguments.

    ``key``: what it was made under, see :func:`_key`.
    """

    outbox: Outbox
    address: Destination
    template: Template
    event: EventTemplate | None
    topics: tuple[str, ...]
    subscribes: bool
    until: float
    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What is asked of an application's configuration with ``changes`` in it.

    ``aside``: whether each call is Celery's: run at once, or on a connection for itself, or not
    waiting for one of the pool as long as it takes.
    """

    conf: Any
    maps: int
    changes: dict[str, Any]
    aside: bool

    @classmethod
    def of(cls, conf: Any) -> _Settings:
        """Those of ``conf`` now."""
        aside = bool(
            conf.task_always_eager
            or not conf.broker_pool_limit
            or conf.broker_pool_acquire_timeout is not None
        )
        return cls(conf, len(conf.maps), dict(conf.maps[0]), aside)

    def are_of(self, conf: Any) -> bool:
        """Whether they are true still."""
        maps = conf.maps
        return self.conf is conf and self.maps == len(maps) and self.changes == maps[0]


class QuickPublisher:
    """Sends calls of one task that have no options of their own."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._ready: _Ready | None = None
        self._slow: tuple[Any, ...] | None = None
        self._slow_until = 0.0
        self._found: _Settings | None = None

    def send(self, process: Process, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Publish it; the task id, or None if Celery has to do it.

        Raises kombu's OperationalError, and TypeError where Celery would.
        """
        task = self._task
        app = task.app
        settings = self._settings(app.conf)
        if settings.aside or _overheard() or _in_a_task(app):
            return None
        try:
            ready = self._prepared(args, kwargs, _key(process, task, app, settings))
        except OperationalError:
            raise
        except Exception:  # noqa: BLE001 (of a sample: Celery says it in its own words)
            return None
        if ready is None:
            return None
        check_arguments(task, args, kwargs)
        task_id = new_id()
        try:
            values = ready.template.values(task_id, args, kwargs, reply=app.thread_oid)
        except Exception:  # noqa: BLE001 (Celery says what cannot be encoded, in its own words)
            return None
        try:
            _push(app, ready, task_id, values)
        except ERRORS as error:
            self._ready = None
            _forget_outbox(app)
            if not app.conf.task_publish_retry:
                raise OperationalError(str(error)) from error
            # As Celery does: the same message again, until its policy gives up.
            celery.Task.apply_async(task, args, kwargs, task_id=task_id)
        return task_id

    def _settings(self, conf: Any) -> _Settings:
        """Celery's configuration takes 5 µs to answer, comparing all of it with a copy 1 µs."""
        found = self._found
        if found is None or not found.are_of(conf):
            found = self._found = _Settings.of(conf)
        return found

    def _prepared(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: tuple[Any, ...]
    ) -> _Ready | None:
        ready, now = self._ready, time.monotonic()
        if ready is not None and now < ready.until and ready.key == key and not ready.outbox.closed:
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
            if not isinstance(producer.channel, Channel):
                return None
            captured = _capture(self._task, args, kwargs, producer)
            messages, broadcasts = captured.messages, captured.broadcasts or []
            channel = producer.channel  # another one, where the server was lost meanwhile
            if not isinstance(channel, Channel) or not isinstance(channel.outbox, Outbox):
                return None
            if len(messages) != 1 or len(broadcasts) > 1:
                return None
            queue, suffix, envelope = messages[0]
            if delayed.delay_of(envelope):
                return None
            try:
                template = Template(envelope)
                event = EventTemplate(broadcasts[0][1]) if broadcasts else None
            except NotTemplatableError:
                return None
            if template.expires or template.body(args, kwargs) != envelope["body"]:
                return None  # a serializer of the application's own
            topics = tuple(f"{channel.keys.prefix}{topic}" for topic in _topics(broadcasts))
            until = time.monotonic() + REFRESH
            outbox = _outbox(self._task.app, channel.outbox)
            address = outbox.address(queue, suffix)
            backend = self._task.app.backend
            listens = not self._task.ignore_result and subscribes(backend)
            return _Ready(outbox, address, template, event, topics, listens, until, key)


def _key(process: Process, task: Task, app: Celery, settings: _Settings) -> tuple[Any, ...]:
    """What a template depends on, as far as it may change while the process runs."""
    amqp = amqp_of(app)
    queues = amqp.__dict__.get("queues")
    return (
        process,
        settings,
        task.name,
        task.ignore_result,
        task._get_exec_options(),
        task.__class__.shadow_name,
        amqp.routes,
        tuple((amqp.queues if queues is None else queues).values()),
        functions(app, amqp),
    )


#: What all tasks publish through that share a pool of connections, so that no more are made.
_outboxes: ProcessLocal[weakref.WeakKeyDictionary[Any, Outbox]] = ProcessLocal(
    weakref.WeakKeyDictionary
)


def _outbox(app: Celery, own: Outbox) -> Outbox:
    """The one for the pool of ``app``; ``own`` if there is none."""
    found = _outboxes.get().setdefault(app.producer_pool, own)
    if found.closed:
        found = _outboxes.get()[app.producer_pool] = own
    return found


def _forget_outbox(app: Celery) -> None:
    """Its server may be away, and another one be used from now on."""
    _outboxes.get().pop(app.producer_pool, None)


def _in_a_task(app: Celery) -> bool:
    """Whether a task runs here: then the message tells of its parent and root."""
    return task_here() is not None and bool(app.current_worker_task)


def _push(app: Celery, ready: _Ready, task_id: str, values: Values) -> None:
    if ready.subscribes:
        app.backend.on_task_call(None, task_id)
    broadcasts = []
    if ready.event is not None:
        event = ready.event.fill(values, app.clock.forward())
        broadcasts = [(topic, event) for topic in ready.topics]
    ready.outbox.push(ready.address, ready.template.text(values), broadcasts)


def _topics(broadcasts: list[tuple[list[str], Any]]) -> list[str]:
    return broadcasts[0][0] if broadcasts else []


def _capture(
    task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], producer: Producer
) -> Capture:
    """What Celery would send."""
    with capturing(producer, broadcasts=True) as captured:
        # Not task.apply_async: a subclass may do more in it, and has done so already.
        celery.Task.apply_async(task, args, kwargs, producer=producer, **SAMPLE)
    return captured


def _overheard() -> bool:
    """Whether somebody listens to publishing: they must hear of each, as Celery tells it."""
    return bool(
        signals.before_task_publish.receivers
        or signals.after_task_publish.receivers
        or signals.task_sent.receivers
    )


def _plain_task(task: Task) -> bool:
    """Whether Celery makes all messages of this task alike."""
    app = task.app
    kind = task.__class__  # of what a proxy stands for, too
    backend = type(app.backend)
    return bool(
        kind.shadow_name is celery.Task.shadow_name
        and "shadow_name" not in task.__dict__
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and not getattr(task, "__v2_compat__", False)
        and is_celerys(app)
        # Others prepare for each result with the task's producer.
        and (
            task.ignore_result
            or backend.on_task_call is Backend.on_task_call
            or needs_no_producer(app.backend)
        )
    )


def send_quickly(
    task: Task, args: Any, kwargs: Any, others: tuple[Any, ...], options: Mapping[str, Any]
) -> Any:
    """What ``apply_async`` with these arguments returns; None where Celery's has to be called."""
    process = here()  # whatever it has of its parent's is forgotten before Celery uses it
    if (
        others
        or options
        or type(args) not in _SEQUENCES
        or type(kwargs) not in _MAPPINGS
        or _crossed(task.soft_time_limit, task.time_limit)
    ):
        return None
    publisher = task.__dict__.get("_cloche_quick")
    if publisher is None:
        publisher = task.__dict__["_cloche_quick"] = QuickPublisher(task)
    task_id = publisher.send(process, args or (), kwargs or {})
    if task_id is None:
        return None
    result = task.AsyncResult(task_id)
    result.ignored = task.ignore_result
    return result


def _crossed(soft: float | None, hard: float | None) -> bool:
    """Whether Celery will refuse these time limits."""
    return bool(soft and hard and soft > hard)


_SEQUENCES = (tuple, list, type(None))
_MAPPINGS = (dict, type(None))
