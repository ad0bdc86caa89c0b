"""The fault matrix: numbered tasks, a ledger outside the broker, a fault under load.

``CHAOS_TASKS`` tasks a row (300 by default; 2,000 for the real thing).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.testing import BrokerProcess
from tests.integration.transport.harness import Bench, connections, wait_until
from tests.integration.transport.proxy import Proxy

TASKS = int(os.environ.get("CHAOS_TASKS", "300"))
CONCURRENCY = 4
#: What a task sleeps.
TASK_SECONDS = 0.01
#: How long all of it may take when nothing is wrong, per task.
PATIENCE = 30 + TASKS * 0.05

pytestmark = pytest.mark.timeout(120 + TASKS)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with (
        BrokerProcess(persistent=True) as broker,
        Bench(broker, "cloche+redis", tmp_path) as found,
    ):
        yield found


class Load:
    """Publishes numbered tasks from a thread; ``acknowledged`` are those the broker took."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.acknowledged: set[int] = set()
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        for number in range(TASKS):
            while True:
                try:
                    self.bench.send(number, seconds=TASK_SECONDS)
                except Exception:
                    time.sleep(0.1)  # not acknowledged: publish it again
                    continue
                break
            self.acknowledged.add(number)

    def join(self) -> None:
        self._thread.join(timeout=PATIENCE)
        assert not self._thread.is_alive(), "the producer got through"

    def check(self, duplicates: int) -> None:
        """Everything ran, at most ``duplicates`` more than once, nothing is left."""
        self.join()
        bench = self.bench
        wait_until(lambda: bench.done(TASKS), "all tasks ran", PATIENCE)
        wait_until(lambda: bench.inflight() == 0, "nothing in flight")
        assert set(bench.ledger.count("end")) >= self.acknowledged
        starts = bench.ledger.count("start")
        repeats = sum(starts.values()) - len(starts)
        assert repeats <= duplicates, f"{repeats} repeats"


def under_way(bench: Bench, share: float = 0.2) -> None:
    wait_until(lambda: len(bench.ledger.count("end")) >= TASKS * share, "under way", PATIENCE)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_row_1_a_worker_killed_under_load(bench: Bench, pool: str) -> None:
    doomed = bench.worker(pool, CONCURRENCY)
    load = Load(bench)
    under_way(bench)
    doomed.kill()
    bench.worker(pool, CONCURRENCY)
    # Running ones, and those that ended in the few ms before their acknowledgement was sent.
    load.check(duplicates=2 * CONCURRENCY)


def test_row_7_sigterm_under_load(bench: Bench) -> None:
    first = bench.worker("prefork", CONCURRENCY)
    load = Load(bench)
    under_way(bench)
    assert first.stop() == 0
    bench.worker("prefork", CONCURRENCY)
    load.check(duplicates=0)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_row_9_the_broker_killed_and_back(bench: Bench, pool: str) -> None:
    worker = bench.worker(pool, CONCURRENCY)
    load = Load(bench)
    under_way(bench)
    bench.broker.kill()
    time.sleep(2)
    bench.broker.start()
    load.check(duplicates=2 * CONCURRENCY)
    assert worker.alive


def test_row_13_the_broker_stopped_and_continued(bench: Bench) -> None:
    bench.worker("prefork", CONCURRENCY)
    load = Load(bench)
    under_way(bench)
    bench.broker.freeze()
    time.sleep(8)
    bench.broker.thaw()
    load.check(duplicates=4 * CONCURRENCY)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_row_14_half_open_connections(bench: Bench, pool: str) -> None:
    with Proxy(bench.broker.port) as proxy:
        bench.worker(pool, CONCURRENCY, url=f"cloche+redis://127.0.0.1:{proxy.port}/0", lease=30)
        load = Load(bench)
        under_way(bench)
        proxy.silence()
        load.check(duplicates=2 * CONCURRENCY)


def test_row_16_all_connections_killed_again_and_again(bench: Bench) -> None:
    bench.worker("prefork", CONCURRENCY)
    load = Load(bench)
    for _ in range(5):
        time.sleep(0.7)
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])
    # A publish whose reply was cut is published again: not a repeat by the worker.
    load.check(duplicates=5)


def test_row_17_memory_full_and_freed(bench: Bench) -> None:
    bench.client.config_set("maxmemory-policy", "noeviction")
    bench.worker("prefork", CONCURRENCY)
    load = Load(bench)
    under_way(bench)
    bench.client.config_set("maxmemory", 1)
    time.sleep(3)
    bench.client.config_set("maxmemory", 0)
    load.check(duplicates=0)


def test_row_12_a_flapping_broker(bench: Bench) -> None:
    worker = bench.worker("threads", CONCURRENCY)
    load = Load(bench)
    under_way(bench, 0.1)
    for _ in range(4):
        bench.broker.kill()
        time.sleep(0.5)
        bench.broker.start()
        time.sleep(0.5)
    load.check(duplicates=8 * CONCURRENCY)
    assert worker.alive


def test_row_2_frozen_workers_killed_while_publishing(bench: Bench) -> None:
    frozen = [bench.worker("solo", 1) for _ in range(2)]
    for worker in frozen:
        worker.signal(signal.SIGSTOP)
    load = Load(bench)
    time.sleep(1)
    for worker in frozen:
        worker.kill()
    bench.worker("prefork", CONCURRENCY)
    load.check(duplicates=0)
