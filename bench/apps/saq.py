"""SAQ on Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from saq import Queue

from bench import marks
from bench.apps import case
from bench.apps.gather import in_hundreds

logging.getLogger("saq").setLevel(logging.WARNING)
queue = Queue.from_url(case.URL, name=case.QUEUE)
_ttl = 600 if case.STORED else -1  # seconds; 600 is SAQ's default, -1 stores nothing


async def noop(_: Any, *, slot: int) -> int:
    marks.mark(slot)
    return slot


async def sleep(_: Any, *, slot: int, seconds: float) -> None:
    marks.start(slot)
    await asyncio.sleep(seconds)
    marks.finish(slot)


settings = {"queue": queue, "functions": [noop, sleep], "concurrency": case.CONCURRENCY}


async def connect() -> None:
    await queue.connect()


async def publish(slot: int) -> None:
    await queue.enqueue("noop", slot=slot, ttl=_ttl)


async def publish_many(slots: Iterable[int]) -> None:
    """SAQ has no batch call that does not wait; this gathers."""
    await in_hundreds(queue.enqueue("noop", slot=slot, ttl=_ttl) for slot in slots)


async def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    await in_hundreds(
        queue.enqueue("sleep", slot=slot, seconds=seconds, ttl=_ttl) for slot in slots
    )
