"""RQ."""

from __future__ import annotations

from collections.abc import Iterable

from redis import Redis
from rq import Queue

from bench import marks
from bench.apps import case

queue = Queue(case.QUEUE, connection=Redis.from_url(case.URL))
_result_ttl = 500 if case.STORED else 0  # seconds; 500 is RQ's default


def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


def publish(slot: int) -> None:
    queue.enqueue(noop, slot, result_ttl=_result_ttl)


def publish_many(slots: Iterable[int]) -> None:
    queue.enqueue_many(
        [Queue.prepare_data(noop, args=(slot,), result_ttl=_result_ttl) for slot in slots]
    )
