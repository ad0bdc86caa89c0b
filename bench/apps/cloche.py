"""The same application and jobs as stock Celery's, by other URLs, hardened.

What the setting asks for is stock's; the rest is what a user of Cloche has.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.apps import case, celery
from bench.apps.celery import app, noop, publish, publish_sleeps
from cloche import harden, map_delay

__all__ = ["app", "celery", "noop", "publish", "publish_many", "publish_sleeps"]

app.conf.broker_url = f"cloche+{case.URL}"
if case.STORED:
    app.conf.result_backend = f"cloche+{case.URL}"
# More than the settings ask of stock.
app.conf.task_track_started = app.conf.result_extended = False
harden(app)


def publish_many(slots: Iterable[int]) -> None:
    published = map_delay(noop, slots)
    assert published.ok, published.failed
