"""Slots and deadlines: bookkeeping without clocks or threads."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from cloche.aio.job import Job
from cloche.aio.slots import Slots
from cloche.aio.watchdog import HARD, SOFT, Deadlines


class Limited:
    """What a job is to lanes and deadlines."""

    def __init__(self, soft: float | None = None, hard: float | None = None) -> None:
        self.soft, self.hard = soft, hard


def _job(soft: float | None = None, hard: float | None = None) -> Job:
    return cast(Job, Limited(soft, hard))


@given(limit=st.integers(1, 5), moves=st.lists(st.sampled_from("+-"), max_size=60))
def test_never_more_than_the_limit_run_and_all_run_in_order(limit: int, moves: list[str]) -> None:
    started: list[Job] = []
    put: list[Job] = []

    def start(job: Job) -> bool:
        started.append(job)
        return True

    slots = Slots(limit, start)
    for move in moves:
        if move == "+":
            put.append(_job())
            slots.put(put[-1])
        elif slots.running:
            slots.release()
        assert slots.running <= limit
        assert slots.running == limit or not len(slots)
    while slots.running:
        slots.release()
    assert started == put


def test_a_job_that_does_not_take_its_slot_leaves_it_to_the_next() -> None:
    started: list[Job] = []
    refused, taken = _job(), _job()

    def start(job: Job) -> bool:
        started.append(job)
        return job is taken

    slots = Slots(1, start)
    slots.put(refused)
    slots.put(taken)
    assert (started, slots.running) == ([refused, taken], 1)


def test_deadlines_are_told_once_in_time_and_not_after_the_end() -> None:
    deadlines = Deadlines()
    first, second, ended = _job(1, 3), _job(1), _job(1)
    for job, began in ((first, 0.0), (ended, 0.1), (second, 0.5)):
        deadlines.add(job, SOFT, 1, began)
    deadlines.add(first, HARD, 3, 0.0)
    deadlines.discard(ended)
    assert list(deadlines.due(0.9)) == []
    assert list(deadlines.due(1.2)) == [(first, SOFT, 1)]
    assert list(deadlines.due(1.2)) == []
    assert list(deadlines.due(9)) == [(second, SOFT, 1), (first, HARD, 3)]
    assert not deadlines
