"""taskiq with taskiq-redis: the list or the stream broker (``BENCH_TASKIQ``)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from bench import marks
from bench.apps import case
from bench.apps.gather import in_hundreds

broker: Any
if os.environ.get("BENCH_TASKIQ") == "stream":
    # "0": the group also gets what was queued before it existed.
    broker = RedisStreamBroker(case.URL, queue_name=case.QUEUE, consumer_id="0")
else:
    broker = ListQueueBroker(case.URL, queue_name=case.QUEUE)
if case.STORED:
    broker = broker.with_result_backend(RedisAsyncResultBackend(case.URL, result_ex_time=3600))


@broker.task
async def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


@broker.task
async def sleep(slot: int, seconds: float) -> None:
    marks.start(slot)
    await asyncio.sleep(seconds)
    marks.finish(slot)


async def connect() -> None:
    await broker.startup()


async def publish(slot: int) -> None:
    await noop.kiq(slot)


async def publish_many(slots: Iterable[int]) -> None:
    """taskiq has no batch call; this gathers."""
    await in_hundreds(noop.kiq(slot) for slot in slots)


async def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    await in_hundreds(sleep.kiq(slot, seconds) for slot in slots)
