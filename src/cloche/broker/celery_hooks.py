"""What the transport changes of Celery in a process that uses it: all of it is here.

:func:`install` does it, once; importing this module changes nothing. In the order of the file:

==============================  ===================================  ==============================
what                            why                                  relies on
==============================  ===================================  ==============================
``Task.Request``                a task whose process died comes      celery/worker/strategy.py,
                                back counted                         ``task.Request``
signals of the worker           dead letters get their reason;       celery/signals.py
                                an unknown task is one line
``flush`` of the prefork pool   what has begun is not forgotten      celery/worker/consumer,
                                with a connection                    ``on_close``
``revoke``, ``scheduled``,      tasks with a countdown wait on       celery/worker/control.py,
``query_task``                  the server                           ``Panel.data``
``stats``                       leases lost; no password of a URL    the same
``Context.lease_lost``          a body asks whether its message      celery/app/task.py
                                is still this worker's
reserved requests               are dropped when a lease is lost     celery/worker/state.py,
                                                                     celery/worker/request.py
pools and locks                 are new in a child of ``os.fork``    kombu/pools.py,
                                                                     kombu/utils/objects.py
==============================  ===================================  ==============================

``tests/unit/test_celery_hooks.py`` fails when Celery's side of one of them changes.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from celery import Celery, _state, current_app, current_task, signals
from celery.app.task import Context, Task
from celery.exceptions import InvalidTaskError, TaskRevokedError
from kombu import Connection, pools
from kombu.exceptions import KombuError
from kombu.utils.objects import cached_property

from cloche.broker import delayed, message, refused
from cloche.broker.channel import Channel
from cloche.broker.connection import url as transport_url
from cloche.broker.connection.commands import send
from cloche.broker.connection.outage import ERRORS, plain
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.lease import table as lease_table
from cloche.broker.lease.lease import field_of
from cloche.broker.prefork_flush import Flush
from cloche.process_local import after_fork

logger = logging.getLogger("cloche.transport")

#: Of each queue, ``inspect scheduled`` lists so many, the next due first.
LISTED = 1000

#: What a message nobody can run may raise when it is made a request.
_UNREADABLE = (KombuError, InvalidTaskError, LookupError, TypeError, ValueError)

#: Celery's name in that list for "no urgency of its own" (kombu.asynchronous.timer.Entry).
_TIMER_PRIORITY = 6

#: The parent's: closing them could wait for a lock that nobody releases, or end its sessions.
_kept: list[Any] = []

#: Where Celery names the class of a worker's requests, unless a project names its own. Strategies
#: read it when the consumer has connected. By name: a producer is spared what it imports.
_STOCK_REQUEST = "celery.worker.request:Request"
_REQUEST = "cloche.broker.request:Request"


@functools.cache
def install() -> None:
    """Change Celery as the table above says; once in a process."""
    if Task.Request == _STOCK_REQUEST:
        Task.Request = _REQUEST
    signals.worker_ready.connect(on_worker_ready)
    signals.task_unknown.connect(on_unknown_task)
    signals.task_rejected.connect(on_rejected)
    # ``self.request.lease_lost`` in a body. Celery has no place to name a class of contexts.
    Context.lease_lost = property(_lease_lost)
    lease_table.on_lost.append(drop_unstarted)
    after_fork(_forget)


def _shorten(record: logging.LogRecord) -> bool:
    """Celery's twenty lines on an unknown task, which end in "discarded": it is kept here."""
    if str(record.msg).startswith("Received unregistered task of type"):
        record.msg = "Received unregistered task of type %s: see the dead letters"
        record.args = (record.args or ("?",))[:1] if isinstance(record.args, tuple) else ("?",)
        record.exc_info = record.exc_text = None
    return True


def on_worker_ready(sender: Any = None, **_: Any) -> None:
    """From now on, in a process that is a worker on this transport."""
    if isinstance(sender.connection.default_channel, Channel):
        logging.getLogger("celery.worker.consumer.consumer").addFilter(_shorten)
        Flush.use(sender.pool)


def on_unknown_task(message: Any = None, name: str = "", **_: Any) -> None:
    """No task of that name is registered in this worker."""
    _explain(message, "unknown-task", f"no task {name!r} is registered in this worker")


def on_rejected(
    sender: Any = None, message: Any = None, exc: Exception | None = None, **_: Any
) -> None:
    """The message is no task message, or a malformed one."""
    detail = f"{type(exc).__name__}: {exc}" if exc else "not a task message"
    if getattr(message, "undecodable", None) is None:
        _explain(message, "invalid", detail)
        if exc is not None and isinstance(getattr(message, "channel", None), Channel):
            refused.tell_of(sender, message, exc)


def _explain(message: Any, reason: str, detail: str) -> None:
    channel = getattr(message, "channel", None)
    if isinstance(channel, Channel):
        try:
            DeadLetters(channel.own, channel.keys).explain(message.delivery_tag, reason, detail)
        except ERRORS:
            return  # the reason stays "rejected"


def extend_control() -> None:
    """Extend the handlers of remote control, once, if this process is a worker: producers load
    none.

    Called with each connection: the signals of a worker's start are not sent by one that a test
    runs in its own process (celery.contrib.testing).
    """
    control = sys.modules.get("celery.worker.control")
    if control is None:
        return
    handlers = control.Panel.data
    if not hasattr(handlers["stats"], "knows_leases"):
        handlers["stats"] = _telling(handlers["stats"])
    if not hasattr(handlers["revoke"], "knows_delayed"):
        handlers["revoke"] = _removing(handlers["revoke"])
        handlers["scheduled"] = handlers["dump_schedule"] = _listing(handlers["scheduled"])
        handlers["query_task"] = _finding(handlers["query_task"])


def _removing(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def revoke(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        reply = stock(state, task_id, *args, **kwargs)
        channel = state.consumer.connection.default_channel
        if isinstance(channel, Channel):
            _remove(state, channel, [task_id] if isinstance(task_id, str) else task_id or ())
        return reply

    revoke.knows_delayed = True  # type: ignore[attr-defined]
    return revoke


def _remove(state: Any, channel: Channel, task_ids: Iterable[str]) -> None:
    for task_id in task_ids:
        try:
            taken = delayed.take(channel.own, channel.keys, task_id)
        except ERRORS as error:
            logger.warning("revoked tasks may still wait on the server: %s", plain(error))
            return
        for raw in taken:
            try:
                _request(state, channel, message.decode(raw)).revoked()
            except _UNREADABLE as error:
                logger.warning("a delayed message of %s cannot be read: %r", task_id, error)


def _listing(stock: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    @functools.wraps(stock)
    def scheduled(state: Any, **kwargs: Any) -> list[Any]:
        found = stock(state, **kwargs)
        channel = state.consumer.connection.default_channel
        if isinstance(channel, Channel):
            for queue in state.app.amqp.queues.consume_from:
                found += _waiting(state, channel, queue)
        return found

    return scheduled


def _finding(stock: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(stock)
    def query_task(state: Any, ids: Any, **kwargs: Any) -> dict[str, Any]:
        found = stock(state, ids, **kwargs)
        channel = state.consumer.connection.default_channel
        if isinstance(channel, Channel):
            wanted = [ids] if isinstance(ids, str) else ids or ()
            for task_id in (one for one in wanted if one not in found):
                if (request := _delayed(state, channel, task_id)) is not None:
                    found[task_id] = ("scheduled", request.info())
        return found

    return query_task


def _delayed(state: Any, channel: Channel, task_id: str) -> Any:
    """The request of a delayed task of the worker's queues, if there is one."""
    for queue in state.app.amqp.queues.consume_from:
        try:
            envelope = delayed.find(channel.own, channel.keys, queue, task_id)
            if envelope is not None:
                return _request(state, channel, envelope)
        except (*ERRORS, *_UNREADABLE) as error:
            logger.warning("a delayed task of %s cannot be looked up: %r", queue, error)
    return None


def _waiting(state: Any, channel: Channel, queue: str) -> Iterator[dict[str, Any]]:
    try:
        envelopes = delayed.waiting(channel.own, channel.keys, queue, LISTED)
    except ERRORS as error:
        logger.warning("cannot list the delayed tasks of %s: %s", queue, plain(error))
        return
    for envelope in envelopes:
        try:
            request = _request(state, channel, envelope)
        except _UNREADABLE as error:
            logger.warning("a delayed message of %s cannot be read: %r", queue, error)
            continue
        yield {
            "eta": request.eta.isoformat() if request.eta else None,
            "priority": _TIMER_PRIORITY,
            "request": request.info(),
        }


def _request(state: Any, channel: Channel, envelope: message.Envelope) -> Any:
    """What Celery's worker makes of a message. Raises one of _UNREADABLE."""
    found = channel.message_to_python(envelope)
    found.accept = state.consumer.task_consumer.accept  # as kombu's consumer does with each
    return import_module("celery.worker.request").Request(
        found,
        app=state.app,
        hostname=state.hostname,
        eventer=state.consumer.event_dispatcher,
        task=state.app.tasks.get(envelope["headers"].get("task")) or state.app.Task(),
    )


def _telling(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def stats(state: Any, **kwargs: Any) -> Any:
        answer = stock(state, **kwargs)
        if isinstance(answer, dict) and isinstance(answer.get("broker"), dict):
            answer["broker"] = transport_url.without_password(answer["broker"])
        leases = lease_table.leases()
        if leases and isinstance(answer, dict):
            answer["leases"] = {
                "lost": sum(lease.losses for lease in leases),
                "fenced": sum(lease.late for lease in leases),
            }
        return answer

    stats.knows_leases = True  # type: ignore[attr-defined]
    return stats


def lease_lost(task: Any) -> bool:
    """Whether the running ``task`` (bound, ``self``) was taken from this worker meanwhile.

    True means that it was or will be run elsewhere too: leave what must happen once to the
    other run. One round trip: the server alone knows. False for a task that is acknowledged
    before it runs, and on other transports. Raises what redis-py raises.
    """
    tag = (task.request.properties or {}).get("delivery_tag", "")
    if not task.acks_late or task.request.is_eager or "/" not in tag:
        return False
    return _lost(task.app or current_app, tag)


def _lost(app: Celery, tag: str) -> bool:
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            return False
        consumer, field = field_of(tag)
        return not send(channel.own, "HEXISTS", channel.keys.inflight(consumer), field)


def _lease_lost(self: Context) -> bool:
    """Whether the message of this run was taken from the worker; see :func:`lease_lost`."""
    return bool(current_task) and lease_lost(current_task)


class _Dropped:
    """Stands where Celery expects a pool to terminate the job in: no body is run."""

    def terminate_job(self, *_: Any) -> None:
        raise TaskRevokedError("its lease was lost before it started")


def drop_unstarted(taken: frozenset[str]) -> None:
    """Drop reserved requests whose delivery tag is among ``taken``."""
    # Only a Celery worker has loaded it; importing it would cost every producer 0.1 s.
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return
    running = set(state.active_requests)
    for request in list(state.reserved_requests):
        if request not in running and request.message.delivery_tag in taken:
            _drop(state, request)


def _drop(state: Any, request: Any) -> None:
    # Checked by Request.execute_using_pool before it hands the job to a pool, and by
    # Request.on_accepted (in the worker's own thread pools) before the body is run.
    request._already_revoked = True
    request._terminate_on_ack = (_Dropped(), None)
    state.task_ready(request)
    request.message.channel.qos.forget(request.message.delivery_tag)


def _forget() -> None:
    for group in (pools.connections, pools.producers):
        _kept.extend(group.values())
        group.clear()
    apps = tuple(_state._get_active_apps())
    _renew_property_locks({Connection, Channel, *map(type, apps)})
    for app in apps:
        _forget_of(app)


def _forget_of(app: Celery) -> None:
    app._pool = None
    app.clock.mutex = threading.Lock()
    amqp = app.__dict__.get("amqp")
    if amqp is not None:
        _renew_property_locks({type(amqp)})
        amqp._producer_pool = None
        dispatcher = amqp.__dict__.get("_event_dispatcher")
        if dispatcher is not None:
            dispatcher.mutex = threading.Lock()
    if "control" in app.__dict__:
        app.control._after_fork()


def _renew_property_locks(classes: set[type]) -> None:
    """kombu's cached properties take the lock of their class each time they are asked."""
    for cls in {base for one in classes for base in one.__mro__}:
        for found in vars(cls).values():
            if isinstance(found, cached_property):
                found.lock = threading.RLock()
