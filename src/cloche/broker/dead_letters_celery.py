"""Why Celery's worker rejected a message: told by its signals, right after the rejection."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals
from celery.app.task import Task

from cloche.broker.channel import Channel
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.outage import ERRORS
from cloche.broker.pool_begun import Flush

#: Celery's name for the place where a worker's class of requests is named; strategies read it when
#: the consumer has connected. By name: a producer is spared what it imports.
if Task.Request == "celery.worker.request:Request":
    Task.Request = "cloche.broker.lost_process:Request"


def _shorten(record: logging.LogRecord) -> bool:
    """Celery's twenty lines on an unknown task, which end in "discarded": it is kept here."""
    if str(record.msg).startswith("Received unregistered task of type"):
        record.msg = "Received unregistered task of type %s: see the dead letters"
        record.args = (record.args or ("?",))[:1] if isinstance(record.args, tuple) else ("?",)
        record.exc_info = record.exc_text = None
    return True


@signals.worker_ready.connect
def on_worker_ready(sender: Any = None, **_: Any) -> None:
    """From now on, in a process that is a worker on this transport."""
    if isinstance(sender.connection.default_channel, Channel):
        logging.getLogger("celery.worker.consumer.consumer").addFilter(_shorten)
        Flush.use(sender.pool)


@signals.task_unknown.connect
def on_unknown_task(message: Any = None, name: str = "", **_: Any) -> None:
    """No task of that name is registered in this worker."""
    _explain(message, "unknown-task", f"no task {name!r} is registered in this worker")


@signals.task_rejected.connect
def on_rejected(message: Any = None, exc: Exception | None = None, **_: Any) -> None:
    """The message is no task message, or a malformed one."""
    detail = f"{type(exc).__name__}: {exc}" if exc else "not a task message"
    if getattr(message, "undecodable", None) is None:
        _explain(message, "invalid", detail)


def _explain(message: Any, reason: str, detail: str) -> None:
    channel = getattr(message, "channel", None)
    if isinstance(channel, Channel):
        try:
            DeadLetters(channel.own, channel.keys).explain(message.delivery_tag, reason, detail)
        except ERRORS:
            return  # the reason stays "rejected"
