"""Huey on Redis, results on or off."""

from __future__ import annotations

import time
from collections.abc import Iterable

from huey import RedisHuey

from bench import marks
from bench.apps import case

huey = RedisHuey(case.QUEUE, url=case.URL, results=case.STORED)


@huey.task()
def noop(slot: int) -> int:
    marks.mark(slot)
    return slot


@huey.task()
def sleep(slot: int, seconds: float) -> None:
    marks.start(slot)
    time.sleep(seconds)
    marks.finish(slot)


def publish(slot: int) -> None:
    noop(slot)


def publish_sleeps(slots: Iterable[int], seconds: float) -> None:
    for slot in slots:
        sleep(slot, seconds)
