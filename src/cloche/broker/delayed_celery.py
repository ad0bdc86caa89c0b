"""Remote control knows the tasks that wait on the server, not in a worker.

``revoke`` takes their messages off the server: Celery's own handler marks the result and remembers
the id, in each worker's memory and for three hours, so a task due later, or after a restart of all
workers, would run. ``inspect scheduled`` lists those of the queues the worker consumes, as Celery
lists the ones in its timer; workers that share a queue name the same tasks.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from importlib import import_module
from typing import Any

from celery.exceptions import InvalidTaskError
from kombu.exceptions import KombuError

from cloche.broker import delayed
from cloche.broker.channel import Channel
from cloche.broker.outage import ERRORS, plain

logger = logging.getLogger("cloche.transport")

#: Of each queue, ``inspect scheduled`` lists so many, the next due first.
LISTED = 1000

#: What a message nobody can run may raise when it is made a request.
_UNREADABLE = (KombuError, InvalidTaskError, LookupError, TypeError, ValueError)

#: Celery's name in that list for "no urgency of its own" (kombu.asynchronous.timer.Entry).
_TIMER_PRIORITY = 6


def extend_control() -> None:
    """Extend the handlers, once, if this process is a worker: producers load none.

    Called with each connection: the signals of a worker's start are not sent by one that a test
    runs in its own process (celery.contrib.testing).
    """
    control = sys.modules.get("celery.worker.control")
    if control is None:
        return
    handlers = control.Panel.data
    if not hasattr(handlers["revoke"], "knows_delayed"):
        handlers["revoke"] = _removing(handlers["revoke"])
        handlers["scheduled"] = handlers["dump_schedule"] = _listing(handlers["scheduled"])


def _removing(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def revoke(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        reply = stock(state, task_id, *args, **kwargs)
        channel = state.consumer.connection.default_channel
        if isinstance(channel, Channel):
            _remove(channel, [task_id] if isinstance(task_id, str) else task_id or ())
        return reply

    revoke.knows_delayed = True  # type: ignore[attr-defined]
    return revoke


def _remove(channel: Channel, task_ids: Iterable[str]) -> None:
    try:
        removed = sum(delayed.revoke(channel.own, channel.keys, task_id) for task_id in task_ids)
    except ERRORS as error:
        logger.warning("revoked tasks may still wait on the server: %s", plain(error))
        return
    if removed:
        logger.info("revoke: %d delayed messages removed", removed)


def _listing(stock: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    @wraps(stock)
    def scheduled(state: Any, **kwargs: Any) -> list[Any]:
        found = stock(state, **kwargs)
        channel = state.consumer.connection.default_channel
        if isinstance(channel, Channel):
            for queue in state.app.amqp.queues.consume_from:
                found += _waiting(state, channel, queue)
        return found

    return scheduled


def _waiting(state: Any, channel: Channel, queue: str) -> Iterator[dict[str, Any]]:
    try:
        envelopes = delayed.waiting(channel.own, channel.keys, queue, LISTED)
    except ERRORS as error:
        logger.warning("cannot list the delayed tasks of %s: %s", queue, plain(error))
        return
    request_type = import_module("celery.worker.request").Request
    for envelope in envelopes:
        try:
            request = request_type(
                channel.message_to_python(envelope),
                app=state.app,
                hostname=state.hostname,
                task=state.app.tasks.get(envelope["headers"].get("task")) or state.app.Task(),
            )
        except _UNREADABLE as error:
            logger.warning("a delayed message of %s cannot be read: %r", queue, error)
            continue
        eta = delayed.parse(request.request_dict.get("eta"))
        yield {
            "eta": eta.isoformat() if eta else None,
            "priority": _TIMER_PRIORITY,
            "request": request.info(),
        }
