"""Dramatiq on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.asyncio import AsyncIO
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench import marks
from bench.apps import case

broker = RedisBroker(url=case.URL)
broker.add_middleware(AsyncIO())
if case.STORED:
    broker.add_middleware(Results(backend=RedisBackend(url=case.URL)))
dramatiq.set_broker(broker)
_results = {"store_results": True} if case.STORED else {}


@dramatiq.actor(queue_name=case.QUEUE, **_results)
def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


@dramatiq.actor(queue_name=case.QUEUE)
async def sleep(slot: int, seconds: float) -> None:
    marks.start(slot)
    await asyncio.sleep(seconds)
    marks.finish(slot)


def publish(slot: int) -> None:
    noop.send(slot)


def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    for slot in slots:
        sleep.send(slot, seconds)
