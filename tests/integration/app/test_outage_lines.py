"""What an outage costs a worker in log lines, in every pool, and that work goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from celery import Celery

from cloche.launch.workers import HEARTBEAT
from cloche.testing import BrokerProcess, wait_until
from tests.integration.app.conftest import LiveWorker, StartWorker

ClientApp = Callable[..., Celery]
POOLS = ("prefork", "threads", "solo", "asyncio")
REMIND = 2


def warnings(worker: LiveWorker) -> list[str]:
    return [
        line
        for line in worker.output.splitlines()
        if ("WARNING" in line or "ERROR" in line) and "runs as root" not in line
    ]


def reminded_twice(worker: LiveWorker) -> bool:
    return worker.output.count("the broker is away for") > 1


def note(app: Celery, directory: Path, pool: str, text: str) -> None:
    app.send_task(
        "tasks.probe.note", (str(directory / pool), text, 0.2), queue=pool, ignore_result=True
    )


def ended(directory: Path, pool: str, text: str) -> bool:
    ledger = directory / pool
    return ledger.exists() and f"end {text}" in ledger.read_text()


@pytest.fixture
def results() -> Iterator[BrokerProcess]:
    with BrokerProcess(persistent=True) as server:
        yield server


def test_the_lines_of_outages_of_broker_and_result_backend(
    broker: BrokerProcess,
    results: BrokerProcess,
    start_worker: StartWorker,
    client_app: ClientApp,
    tmp_path: Path,
) -> None:
    options = {"CLOCHE_BROKER__REMIND": str(REMIND), "CLOCHE_RESULTS__URL": results.url}
    workers = {
        pool: start_worker(
            *(broker.url, "-P", pool, "-c", "1", "--name", pool, "-Q", pool), **options
        )
        for pool in POOLS
    }
    app = client_app(broker.url, results__url=results.url)

    broker.kill()
    time.sleep(3 * REMIND + 1)  # the length of the outage: 60 s and a minute's reminder, scaled
    broker.start()
    for pool in POOLS:
        note(app, tmp_path, pool, "after")
    for pool, worker in workers.items():
        wait_until(partial(ended, tmp_path, pool, "after"), f"work in {pool}", 40)
        wait_until(partial(worker.says, "the broker answers again"), "the last line", 20)
        told = warnings(worker)
        assert sum("the broker does not answer" in line for line in told) == 1, told
        assert 2 <= sum("the broker is away for" in line for line in told) <= 4, told
        assert sum("the broker answers again, after" in line for line in told) == 1, told
        assert len(told) <= 8, told
        assert "Traceback" not in worker.output

    results.kill()
    for pool in POOLS:
        app.send_task("tasks.probe.limits", queue=pool)  # its result has nowhere to go
    for pool, worker in workers.items():
        line = partial(worker.says, "the result backend does not answer")
        wait_until(line, f"the line of {pool}", 30)
    results.start()
    for worker in workers.values():
        wait_until(partial(worker.says, "the result backend answers again"), "its end", 30)
        assert "Retry (" not in worker.output


def test_a_worker_stops_while_its_broker_is_away_though_heartbeats_were_due(
    results: BrokerProcess, start_worker: StartWorker
) -> None:
    workers = [
        start_worker(
            *(results.url, "-P", pool, "-c", "1", "--name", pool, "-Q", pool),
            CLOCHE_BROKER__REMIND=str(HEARTBEAT),
        )
        for pool in POOLS
    ]
    results.kill()
    for worker in workers:
        wait_until(partial(reminded_twice, worker), "two heartbeats to be due")
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        assert worker.process.wait(20) == 0, worker.output


def test_a_flapping_broker_costs_no_more_lines_than_the_fault_matrix_allows(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    workers = {
        pool: start_worker(*(broker.url, "-P", pool, "-c", "1", "--name", pool, "-Q", pool))
        for pool in POOLS
    }
    for _ in range(10):
        broker.kill()
        time.sleep(0.5)  # flapping: its beat, not a wait for something
        broker.start()
        time.sleep(0.5)
    app = client_app(broker.url)
    for pool in POOLS:
        note(app, tmp_path, pool, "after")
    for pool, worker in workers.items():
        wait_until(partial(ended, tmp_path, pool, "after"), f"work in {pool}", 40)
        assert not worker.ended
        # Results are kept on the same server: one voice tells of both.
        assert "the result backend" not in worker.output
        # Row 12 of the fault matrix allows 150 for 60 times.
        assert len(warnings(worker)) <= 25, warnings(worker)
