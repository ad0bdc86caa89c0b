"""arq: its default polling (0.5 s), the concurrency asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from bench import marks
from bench.apps import case
from bench.apps.gather import in_hundreds

_redis: ArqRedis


async def noop(_: dict[str, Any], slot: int) -> int:
    marks.mark(slot)
    return slot


async def sleep(_: dict[str, Any], slot: int, seconds: float) -> None:
    marks.start(slot)
    await asyncio.sleep(seconds)
    marks.finish(slot)


class Worker:
    """arq's worker settings."""

    functions = (noop, sleep)
    queue_name = case.QUEUE
    redis_settings = RedisSettings.from_dsn(case.URL)
    max_jobs = case.CONCURRENCY
    keep_result = 3600 if case.STORED else 0  # seconds; 3600 is arq's default
    log_results = False


async def connect() -> None:
    global _redis
    _redis = await create_pool(Worker.redis_settings, default_queue_name=case.QUEUE)


async def publish(slot: int) -> None:
    await _redis.enqueue_job("noop", slot)


async def publish_many(slots: Iterable[int]) -> None:
    """arq has no batch call; its documentation gathers."""
    await in_hundreds(_redis.enqueue_job("noop", slot) for slot in slots)


async def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    await in_hundreds(_redis.enqueue_job("sleep", slot, seconds) for slot in slots)
