"""Rows 1 to 8: workers and their processes die, stop, and are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest
import redis

from cloche.broker.dead_letters import DeadLetter, DeadLetters
from cloche.testing import wait_until
from tests.chaos.conftest import Report
from tests.chaos.measure import CONCURRENCY, TASKS, Allowed, Load, Row, inflight_of
from tests.integration.transport.harness import Bench, Worker

pytestmark = pytest.mark.timeout(300 + TASKS)

LEASE = 2.0
#: The second in the long form only.
POOLS = ["prefork", pytest.param("threads", marks=pytest.mark.long)]
#: The number of the task that kills.
KILLER = 10**6


def letters(bench: Bench) -> list[DeadLetter]:
    with redis.Redis(port=bench.broker.port) as client:
        return DeadLetters(client).latest()


@pytest.mark.parametrize("pool", POOLS)
def test_row_1_a_worker_killed_under_load(bench: Bench, report: Report, pool: str) -> None:
    doomed = bench.worker(pool, CONCURRENCY)
    bench.worker(pool, CONCURRENCY)
    row = Row(1, f"kill -9 worker under load, {pool}", bench, Load(bench, seconds=0.05))
    row.under_way()
    row.begin()
    doomed.kill()
    had = inflight_of(bench, doomed)
    found = row.finish(
        Allowed(CONCURRENCY, LEASE + 5, 20), seconds=row.recovery_of_later(had), late=True
    )
    report(found)


def test_row_2_frozen_workers_killed_while_publishing(bench: Bench, report: Report) -> None:
    bench.worker("prefork", CONCURRENCY)
    frozen = [bench.worker("solo", 1) for _ in range(2)]
    for worker in frozen:
        worker.signal(signal.SIGSTOP)
    row = Row(2, "SIGSTOP idle worker, publish, SIGKILL", bench, Load(bench))
    row.under_way(0.02)
    row.begin()
    had = set().union(*(inflight_of(bench, worker) for worker in frozen))
    for worker in frozen:
        worker.kill()
    report(row.finish(Allowed(0, LEASE + 5, 10), seconds=row.recovery_of_later(had)))


@pytest.mark.long
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_row_3_a_worker_stopped_past_its_lease(bench: Bench, report: Report, pool: str) -> None:
    stopped = bench.worker(pool, CONCURRENCY)
    other = bench.worker(pool, CONCURRENCY)
    row = Row(
        3, f"SIGSTOP worker past its lease, SIGCONT, {pool}", bench, Load(bench, seconds=0.05)
    )
    row.under_way()
    row.begin()
    stopped.signal(signal.SIGSTOP)
    wait_until(lambda: "is dead" in other.log, "its lease was ended")
    time.sleep(1)
    row.end()
    stopped.signal(signal.SIGCONT)
    wait_until(lambda: "lease lost" in stopped.log, "it noticed")
    seconds = time.time() - row.ended
    report(row.finish(Allowed(CONCURRENCY, 10, 20), seconds=seconds, late=True))
    assert "fenced" in stopped.log


@pytest.mark.long
def test_row_4_pool_processes_killed(bench: Bench, report: Report) -> None:
    worker = bench.worker("prefork", CONCURRENCY, conf={"task_reject_on_worker_lost": True})
    row = Row(4, "kill -9 a pool process", bench, Load(bench, seconds=0.05))
    row.under_way()
    child = psutil.Process(worker.process.pid).children()[0]
    row.begin()
    child.kill()
    report(row.finish(Allowed(1, 10, 10)))
    assert len(psutil.Process(worker.process.pid).children()) == CONCURRENCY


def test_row_5_a_task_that_always_kills_its_process(bench: Bench, report: Report) -> None:
    bench.worker("prefork", CONCURRENCY, conf={"task_reject_on_worker_lost": True})
    row = Row(5, "task that always kills its process", bench, Load(bench))
    row.under_way()
    row.begin()
    bench.send(KILLER, "kill_child")
    wait_until(lambda: letters(bench), "it is a dead letter", 60)
    seconds = letters(bench)[0].at - row.began
    runs = bench.ledger.count("start")[KILLER]
    # Its own second and third run are repeats by design.
    report(row.finish(Allowed(2, 30, 30), seconds=seconds))
    (letter,) = letters(bench)
    assert (letter.reason, len(letter.deaths), runs) == ("max-deliveries", 3, 3)


class Supervised:
    """A worker that is started again whenever it dies."""

    def __init__(self, bench: Bench, concurrency: int) -> None:
        self._bench, self._concurrency = bench, concurrency
        self.worker = self._start()
        self.worker.wait_ready()

    def _start(self) -> Worker:
        return self._bench.worker("prefork", self._concurrency, ready=False)

    def watch(self) -> None:
        if not self.worker.alive:
            self.worker = self._start()


@pytest.mark.long
def test_row_6_a_task_that_always_kills_its_worker(bench: Bench, report: Report) -> None:
    lease = 6.0
    bench.options["lease"] = lease
    both = [Supervised(bench, CONCURRENCY) for _ in range(2)]
    row = Row(6, "task that always kills its worker", bench, Load(bench))
    row.under_way()
    row.begin()
    bench.send(KILLER, "kill_worker")

    def dead() -> bool:
        for one in both:
            one.watch()
        return bool(letters(bench))

    wait_until(dead, "it is a dead letter", 6 * lease + 60)
    began = min(e.at for e in bench.ledger.effects("start") if e.number == KILLER)
    seconds = letters(bench)[0].at - began
    # Each of three deaths repeats what ran beside it, and the killer itself runs twice more.
    # A death is found in a round of the leader, half a second apart.
    allowed = Allowed(2 + 3 * CONCURRENCY, 3 * (lease + 0.5), 60)
    report(row.finish(allowed, seconds=seconds))
    (letter,) = letters(bench)
    assert (letter.reason, len(letter.deaths)) == ("max-deliveries", 3)
    assert bench.ledger.count("start")[KILLER] == 3


@pytest.mark.parametrize("pool", POOLS)
def test_row_7_sigterm_under_load(bench: Bench, report: Report, pool: str) -> None:
    first = bench.worker(pool, CONCURRENCY)
    bench.worker(pool, CONCURRENCY)
    row = Row(7, f"SIGTERM under load, {pool}", bench, Load(bench))
    row.under_way()
    row.begin()
    assert first.stop(45) == 0
    report(row.finish(Allowed(0, 45, 20), seconds=time.time() - row.began))


@pytest.mark.long
def test_row_8_sigterm_and_tasks_longer_than_the_grace(bench: Bench, report: Report) -> None:
    grace = 3.0
    first = bench.worker("prefork", CONCURRENCY)
    for number in range(CONCURRENCY):
        bench.send(KILLER + number, seconds=15)
    wait_until(lambda: len(bench.ledger.count("start")) == CONCURRENCY, "the long ones run")
    bench.worker("prefork", CONCURRENCY)
    row = Row(8, "SIGTERM, task longer than the grace", bench, Load(bench))
    row.under_way(0.02)
    row.begin()
    with pytest.raises(subprocess.TimeoutExpired):
        first.stop(grace)
    first.kill()

    def again() -> bool:
        return all(bench.ledger.count("start")[KILLER + n] == 2 for n in range(CONCURRENCY))

    wait_until(again, "they run again", 60)
    starts = [e.at for e in bench.ledger.effects("start") if e.number >= KILLER]
    seconds = max(starts) - row.began
    report(row.finish(Allowed(CONCURRENCY, grace + 10, 20), seconds=seconds))
    wait_until(lambda: bench.ledger.count("end")[KILLER] == 1, "they end", 60)


@pytest.mark.long
def test_row_23_clocks_two_hours_off(bench: Bench, report: Report) -> None:
    shifted = os.path.join(os.path.dirname(__file__), "shifted")
    for hours in (2, -2):
        environ = {
            "PYTHONPATH": os.pathsep.join([shifted, os.environ.get("PYTHONPATH", ""), os.getcwd()]),
            "SHIFT_SECONDS": str(hours * 3600),
        }
        bench.worker("prefork", 2, environ=environ)
    load = Load(bench, delayed=10)
    row = Row(23, "clock 2 h ahead on one worker, 2 h behind on the other", bench, load)
    row.begin()
    report(row.finish(Allowed(0, 15, 10)))
    published = load.acknowledged
    early = [
        e
        for e in bench.ledger.effects("start")
        if e.number % 10 == 0 and e.at < published[e.number] + 0.9
    ]
    assert not early
    pids = {e.pid for e in bench.ledger.effects("start")}
    assert len(pids) == 4, "both workers took part"
