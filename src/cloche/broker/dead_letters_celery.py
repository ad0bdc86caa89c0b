"""Why Celery's worker rejected a message: told by its signals, right after the rejection."""

from __future__ import annotations

from typing import Any

from celery import signals
from celery.app.task import Task

from cloche.broker.channel import Channel
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.outage import ERRORS

#: Celery's name for the place where a worker's class of requests is named; strategies read it when
#: the consumer has connected. By name: a producer is spared what it imports.
if Task.Request == "celery.worker.request:Request":
    Task.Request = "cloche.broker.lost_process:Request"


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
