"""The faults that lose or repeat tasks on stock ``redis://``, on both transports."""

from __future__ import annotations

import signal
import time

import pytest

from cloche.testing import wait_until
from tests.integration.transport.harness import Bench, connections
from tests.integration.transport.proxy import Proxy

#: Those after the first in the long form only.
POOLS = [
    "prefork",
    pytest.param("threads", marks=pytest.mark.long),
    pytest.param("solo", marks=pytest.mark.long),
]


@pytest.mark.parametrize("pool", POOLS)
def test_every_task_runs_once_and_nothing_stays_in_flight(bench: Bench, pool: str) -> None:
    worker = bench.worker(pool)
    for number in range(100):
        bench.send(number)
    wait_until(lambda: bench.done(100), "100 tasks ran")
    wait_until(lambda: bench.inflight() == 0, "all acknowledged")
    assert worker.stop() == 0
    assert max(bench.ledger.count("start").values()) == 1
    assert not bench.client.exists("cloche:leases")


def freeze_publish_kill(bench: Bench, pool: str) -> None:
    """SIGSTOP an idle worker, publish, SIGKILL it, start another."""
    frozen = bench.worker(pool, 1)
    time.sleep(0.5)  # it blocks on the server
    frozen.signal(signal.SIGSTOP)
    bench.send(0)
    time.sleep(0.5)  # the server hands it over
    frozen.kill()
    bench.worker(pool, 1)


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_published_to_a_frozen_worker_survives_its_kill(bench: Bench, pool: str) -> None:
    freeze_publish_kill(bench, pool)
    wait_until(lambda: bench.done(1), "the task ran")
    assert bench.ledger.count("start") == {0: 1}


@pytest.mark.parametrize("scheme", ["redis"])
def test_stock_loses_a_task_published_to_a_frozen_worker(bench: Bench) -> None:
    freeze_publish_kill(bench, "solo")
    time.sleep(3)
    assert not bench.done(1)
    assert bench.inflight() == 0  # nowhere any more


@pytest.mark.parametrize("pool", POOLS)
def test_tasks_of_a_killed_worker_run_again_within_lease_and_five_seconds(
    bench: Bench, pool: str
) -> None:
    numbers = 60
    doomed = bench.worker(pool, 2)
    for number in range(numbers):
        bench.send(number, seconds=0.05)
    wait_until(lambda: len(bench.ledger.count("end")) >= 10, "10 tasks ended")
    doomed.kill()
    started = time.monotonic()
    running = {n for n, count in bench.ledger.count("start").items() if count} - set(
        bench.ledger.count("end")
    )
    bench.worker(pool, 2)
    wait_until(lambda: bench.done(numbers), "all tasks ran", 60)
    took = time.monotonic() - started
    repeated = {n for n, count in bench.ledger.count("start").items() if count > 1}
    # Running at the kill, or ended within the last few ms with the acknowledgement unsent.
    assert len(repeated) <= 2 + len(running)
    assert took < 2.0 + 5 + numbers * 0.05 + 3  # lease + 5 s, the rest's work, a worker's start
    wait_until(lambda: bench.inflight() == 0, "all acknowledged")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["redis"])
def test_stock_keeps_the_tasks_of_a_killed_worker_from_the_others(bench: Bench) -> None:
    numbers = 60
    doomed = bench.worker("prefork", 2)
    other = bench.worker("prefork", 2)
    for number in range(numbers):
        bench.send(number, seconds=0.05)
    wait_until(lambda: len(bench.ledger.count("end")) >= 10, "10 tasks ended")
    doomed.kill()
    wait_until(lambda: bench.client.llen("celery") == 0, "the rest was taken")
    # Our lease and five seconds, in which all of them would have run again.
    wait_until(lambda: len(bench.ledger.count("end")) >= numbers - 12, "the rest ran")
    time.sleep(2 + 5)
    assert other.alive
    assert not bench.done(numbers), "what the dead one held is out of reach"
    assert bench.inflight() > 0, "for an hour, kombu's visibility timeout"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["redis"])
def test_what_a_dead_stock_worker_held_is_brought_back_by_a_stock_worker_of_another_queue(
    bench: Bench,
) -> None:
    """The end of a migration, as docs/transport.md describes it."""
    doomed = bench.worker("prefork", 1)
    bench.send(0, seconds=1)
    bench.send(1, seconds=60)
    wait_until(lambda: bench.ledger.count("start")[1], "it runs")
    doomed.kill()
    assert bench.inflight() == 1
    bench.options = {"visibility_timeout": 1, "unacked_restore_interval": 1}
    bench.worker("solo", 1, conf={"task_default_queue": "nobody"}, unacked_restore_throttle=1)
    wait_until(lambda: bench.client.llen("celery") == 1, "it is back", 60)
    assert bench.inflight() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_cutting_all_connections_repeats_nothing_that_runs(bench: Bench, pool: str) -> None:
    numbers = 12
    worker = bench.worker(pool, 2)
    for number in range(numbers):
        bench.send(number, seconds=0.5)
    wait_until(lambda: bench.ledger.count("start"), "tasks run")
    for _ in range(3):
        time.sleep(0.4)
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])
    wait_until(lambda: bench.done(numbers), "all tasks ran", 60)
    wait_until(lambda: bench.inflight() == 0, "all acknowledged")
    assert max(bench.ledger.count("start").values()) == 1
    assert worker.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["redis"])
def test_stock_repeats_what_runs_when_its_connections_are_cut(bench: Bench) -> None:
    bench.worker("threads", 2)
    for number in range(4):
        bench.send(number, seconds=3)
    wait_until(lambda: len(bench.ledger.count("start")) == 2, "two run")
    for one in connections(bench.client):
        bench.client.client_kill_filter(_id=one["id"])
    wait_until(lambda: max(bench.ledger.count("start").values()) > 1, "one ran again", 30)


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["redis"])
def test_stock_repeats_a_task_longer_than_its_visibility_timeout(bench: Bench) -> None:
    bench.options = {"visibility_timeout": 1, "unacked_restore_interval": 1}
    bench.options["unacked_restore_throttle"] = 1
    bench.worker("threads", 2)
    bench.send(0, seconds=6)
    wait_until(lambda: bench.ledger.count("start")[0] > 1, "it started again", 20)


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["redis"])
def test_stock_loses_what_it_popped_from_a_full_server(bench: Bench) -> None:
    bench.client.config_set("maxmemory-policy", "noeviction")
    bench.worker("solo", 1, conf={"worker_prefetch_multiplier": 1})
    for number in range(5):
        bench.send(number, seconds=1 if number == 0 else 0)
    wait_until(lambda: bench.ledger.count("start"), "the first runs")
    bench.client.config_set("maxmemory", 1)
    try:
        wait_until(lambda: bench.client.llen("celery") < 4, "one was popped", 20)
        time.sleep(0.5)
    finally:
        bench.client.config_set("maxmemory", 0)
    bench.worker("solo", 1)
    wait_until(lambda: bench.client.llen("celery") == 0, "the rest was taken", 20)
    time.sleep(1)
    assert not bench.done(5)
    assert bench.inflight() == 0


def half_open(bench: Bench, pool: str) -> None:
    """The path to an idle worker falls silent; a task is published; the worker recovers."""
    with Proxy(bench.broker.port) as proxy:
        bench.worker(pool, 1, url=f"{bench.scheme}://127.0.0.1:{proxy.port}/0")
        time.sleep(0.5)
        proxy.silence()
        bench.send(0)
        wait_until(lambda: bench.done(1), "the task ran", 25)


@pytest.mark.long
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_published_into_a_half_open_connection_runs(bench: Bench, pool: str) -> None:
    half_open(bench, pool)
    assert bench.ledger.count("start") == {0: 1}


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["redis"])
def test_stock_loses_a_task_published_into_a_half_open_connection(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="the task ran"):
        half_open(bench, "solo")
    assert bench.client.llen("celery") == 0
    assert bench.inflight() == 0


@pytest.mark.long
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_longer_than_any_timeout_runs_once(bench: Bench, pool: str) -> None:
    bench.worker(pool, 1)
    bench.send(0, seconds=6)  # three leases
    bench.worker(pool, 1)
    wait_until(lambda: bench.done(1), "the long task ended")
    time.sleep(1)
    assert bench.ledger.count("start") == {0: 1}


@pytest.mark.parametrize("pool", POOLS)
def test_a_full_server_pauses_and_loses_nothing(bench: Bench, pool: str) -> None:
    worker = bench.worker(pool, 2)
    bench.client.config_set("maxmemory-policy", "noeviction")
    numbers = 40
    for number in range(numbers):
        bench.send(number, seconds=0.02)
        if number == 10:
            wait_until(lambda: bench.ledger.count("start"), "tasks run")
    bench.client.config_set("maxmemory", 1)
    try:
        time.sleep(3)
        assert worker.alive
    finally:
        bench.client.config_set("maxmemory", 0)
    wait_until(lambda: bench.done(numbers), "all tasks ran", 60)
    assert max(bench.ledger.count("start").values()) == 1
    wait_until(lambda: bench.inflight() == 0, "all acknowledged")
