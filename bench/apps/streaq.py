"""streaQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from streaq import Worker

from bench import marks
from bench.apps import case

logging.getLogger("streaq").setLevel(logging.WARNING)
worker = Worker(redis_url=case.URL, queue_name=case.QUEUE, concurrency=case.CONCURRENCY)
_ttl = 300 if case.STORED else 0  # seconds; 300 is streaQ's default, 0 stores nothing


@worker.task(ttl=_ttl, silent=True)
async def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


@worker.task(ttl=_ttl, silent=True)
async def sleep(slot: int, seconds: float) -> None:
    marks.start(slot)
    await asyncio.sleep(seconds)
    marks.finish(slot)


def session() -> Worker:
    """Publishing needs the worker's context."""
    return worker


async def publish(slot: int) -> None:
    await noop.enqueue(slot)


async def publish_many(slots: Iterable[int]) -> None:
    await worker.enqueue_many([noop.enqueue(slot) for slot in slots])


async def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    await worker.enqueue_many([sleep.enqueue(slot, seconds) for slot in slots])
