"""For a task's body: is the message it works on still this worker's?"""

from __future__ import annotations

from typing import Any

from celery import current_app, current_task
from celery.app.task import Context

from cloche.broker.channel import Channel
from cloche.broker.commands import send
from cloche.broker.lease import field_of


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


def _lost(app: Any, tag: str) -> bool:
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            return False
        consumer, field = field_of(tag)
        return not send(channel.own, "HEXISTS", channel.keys.inflight(consumer), field)


def _lease_lost(self: Context) -> bool:
    """Whether the message of this run was taken from the worker; see :func:`lease_lost`."""
    return bool(current_task) and lease_lost(current_task)


# ``self.request.lease_lost`` in a body. Celery has no place to name a class of contexts.
Context.lease_lost = property(_lease_lost)
