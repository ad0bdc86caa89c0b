"""For a task's body: is the message it works on still this worker's?"""

from __future__ import annotations

from typing import Any

from celery import current_app

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
    app = task.app or current_app
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            return False
        consumer, field = field_of(tag)
        return not send(channel.own, "HEXISTS", channel.keys.inflight(consumer), field)
