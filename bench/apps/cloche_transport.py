"""Celery on Cloche's transport, and what the benchmark `delayed` asks of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence

from celery import Celery

from bench import marks
from bench.apps import case
from cloche.broker import delayed
from cloche.broker.keys import Keys
from cloche.broker.publish.bulk import map_delay
from cloche.broker.publish.bulk import publish_many as send_all

app = Celery("bench", broker=f"cloche+{case.URL}")
app.conf.update(
    task_default_queue=case.QUEUE, task_ignore_result=True, worker_hijack_root_logger=True
)


@app.task
def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


def publish(slot: int) -> None:
    noop.delay(slot)


def publish_many(slots: Iterable[int]) -> None:
    map_delay(noop, slots)


def publish_delayed(slots: Sequence[int], waits: Iterable[float]) -> None:
    """Each job with its own countdown."""
    pairs = zip(slots, waits, strict=True)
    published = send_all(app, (noop.s(slot).set(countdown=wait) for slot, wait in pairs))
    assert published.ok, published.failed[0].error


def revoke_delayed(count: int) -> float:
    """Take jobs that wait, picked at random, off the server; median seconds."""
    keys, spent = Keys(), []
    with app.connection() as connection, connection.channel() as channel:
        client = channel.own
        for task_id in client.zrandmember(keys.delayed(case.QUEUE), count):
            began = time.perf_counter()
            assert delayed.revoke(client, keys, task_id.decode()) == 1
            spent.append(time.perf_counter() - began)
    return statistics.median(spent)
