"""Stock Celery on stock kombu: defaults, except what the setting asks for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable

from celery import Celery

from bench import marks
from bench.apps import case

app = Celery("bench", broker=case.URL, backend=case.URL if case.STORED else None)
app.conf.update(
    task_default_queue=case.QUEUE,
    task_ignore_result=not case.STORED,
    task_acks_late=case.PRODUCTION,
    task_send_sent_event=case.PRODUCTION,
    worker_send_task_events=case.PRODUCTION,
    worker_hijack_root_logger=True,
)


@app.task
def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


@app.task
def sleep_blocking(slot: int, seconds: float) -> None:
    marks.start(slot)
    time.sleep(seconds)
    marks.finish(slot)


async def sleep_async(slot: int, seconds: float) -> None:
    marks.start(slot)
    await asyncio.sleep(seconds)
    marks.finish(slot)


@app.task
def sleep_in_own_loop(slot: int, seconds: float) -> None:
    asyncio.run(sleep_async(slot, seconds))


# How this pool runs an asynchronous job.
_sleeper = {
    "blocking": lambda: sleep_blocking,
    "own loop": lambda: sleep_in_own_loop,
    # Only where the pool awaits it: Cloche refuses to start a worker that would not.
    "native": lambda: app.task(name="bench.apps.celery.sleep_native")(sleep_async),
}[os.environ.get("BENCH_SLEEPER", "own loop")]()


def publish(slot: int) -> None:
    noop.delay(slot)


def publish_many(slots: Iterable[int]) -> None:
    with app.amqp.producer_pool.acquire(block=True) as producer, producer.batch():
        for slot in slots:
            noop.apply_async((slot,), producer=producer)


def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    with app.amqp.producer_pool.acquire(block=True) as producer, producer.batch():
        for slot in slots:
            _sleeper.apply_async((slot, seconds), producer=producer)
