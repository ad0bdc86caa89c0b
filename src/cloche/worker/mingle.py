"""Celery's mingle, as long as the neighbours need and not a whole second."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.consumer.mingle import Mingle


class QuickMingle(Mingle):
    """Learns revoked tasks and the logical clock from the other workers.

    Celery's own waits a second for answers in any case, because it cannot know how many
    will come. On Redis the control exchange's table of bindings tells: one entry for each
    worker that listens (kombu 5.7 drops those of dead ones after a while, and only such a
    leftover makes us wait the whole second).
    """

    name = "cloche.worker.mingle.QuickMingle"
    label = "QuickMingle"

    def __init__(self, consumer: Consumer, without_mingle: bool = False, **kwargs: Any) -> None:
        super().__init__(consumer, without_mingle=False, **kwargs)

    def send_hello(self, c: Any) -> dict[str, Any]:
        """The neighbours' answers by node name; {} at once where there are none."""
        channel = c.connection.default_channel
        if not hasattr(channel, "get_table"):
            replies: dict[str, Any] = super().send_hello(c)
            return replies
        neighbours = len(channel.get_table(c.app.control.mailbox.exchange.name))
        if not neighbours:
            return {}
        inspect = c.app.control.inspect(timeout=1.0, connection=c.connection, limit=neighbours)
        found = inspect.hello(c.hostname, list(c.controller.state.revoked)) or {}
        found.pop(c.hostname, None)
        return dict(found)


def use_quick_mingle(app: Celery) -> dict[str, bool]:
    """Put it in the place of Celery's own; the worker's options that go with it."""
    app.steps["consumer"].add(QuickMingle)
    return {"without_mingle": True}
