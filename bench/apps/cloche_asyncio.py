"""The same application on Cloche's transport, its jobs coroutines."""

from __future__ import annotations

from collections.abc import Iterable

from bench import marks
from bench.apps import cloche
from bench.apps.celery import app, sleep_async
from cloche.broker.publish.bulk import map_delay, starmap_delay

__all__ = ["app", "cloche", "noop", "publish", "publish_many", "publish_sleeps"]


@app.task
async def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


sleep = app.task(name="bench.apps.cloche_asyncio.sleep")(sleep_async)


def publish(slot: int) -> None:
    noop.delay(slot)


def publish_many(slots: Iterable[int]) -> None:
    published = map_delay(noop, slots)
    assert published.ok, published.failed


def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    published = starmap_delay(sleep, [(slot, seconds) for slot in slots])
    assert published.ok, published.failed
