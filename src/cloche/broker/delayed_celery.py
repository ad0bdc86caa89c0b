"""``app.control.revoke``: the message of a delayed task is taken off the server.

Celery's own handler marks the result and remembers the id, in each worker's memory and for three
hours: a task due later, or after a restart of all workers, would run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import wraps
from importlib import import_module
from typing import Any

from celery import signals

from cloche.broker import delayed
from cloche.broker.channel import Channel
from cloche.broker.outage import ERRORS, plain

logger = logging.getLogger("cloche.transport")


@signals.worker_ready.connect
def on_worker_ready(sender: Any = None, **_: Any) -> None:
    """Extend the handler once, in a process that is a worker on this transport."""
    if not isinstance(sender.connection.default_channel, Channel):
        return
    # Loaded in every worker; producers, who import this file too, are spared it.
    handlers = import_module("celery.worker.control").Panel.data
    if not hasattr(handlers["revoke"], "removes_delayed"):
        handlers["revoke"] = _extended(handlers["revoke"])


def _extended(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def revoke(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        reply = stock(state, task_id, *args, **kwargs)
        channel = state.consumer.connection.default_channel
        if isinstance(channel, Channel):
            _remove(channel, [task_id] if isinstance(task_id, str) else task_id or ())
        return reply

    revoke.removes_delayed = True  # type: ignore[attr-defined]
    return revoke


def _remove(channel: Channel, task_ids: Iterable[str]) -> None:
    try:
        removed = sum(delayed.revoke(channel.own, channel.keys, task_id) for task_id in task_ids)
    except ERRORS as error:
        logger.warning("revoked tasks may still wait on the server: %s", plain(error))
        return
    if removed:
        logger.info("revoke: %d delayed messages removed", removed)
