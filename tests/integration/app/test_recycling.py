"""Threads and solo workers honour max_tasks_ and max_memory_per_child, and lose nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from cloche.testing import wait_until
from tests.integration.app.conftest import StartWorker

ClientApp = Callable[..., Celery]
TASKS = 60


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_starts_itself_anew_after_its_number_of_tasks(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path, pool: str
) -> None:
    queue = f"recycled-{pool}"
    worker = start_worker(
        *(broker_url, "-P", pool, "-c", "4" if pool == "threads" else "1"),
        *("--name", "brief", "-Q", queue),
        CLOCHE_WORKERS__BRIEF__MAX_TASKS_PER_CHILD="20",
    )
    app, ledger = client_app(broker_url), tmp_path / "ledger"
    for number in range(TASKS):
        app.send_task(
            "tasks.probe.note", (str(ledger), str(number), 0.01), queue=queue, ignore_result=True
        )

    def ends() -> int:
        return ledger.read_text().count("end ") if ledger.exists() else 0

    wait_until(lambda: ends() == TASKS, "all tasks", 60)
    counts = Counter(line for line in ledger.read_text().splitlines())
    assert set(counts.values()) == {1}, "none lost, none run twice"
    assert worker.output.count("the worker drains and starts anew: 2") >= 2

    def settled() -> bool:
        return worker.output.count(" ready.") == worker.output.count("starts anew") + 1

    wait_until(settled, "the last one to be ready", 30)
    assert not worker.ended
    worker.process.terminate()
    assert worker.process.wait(20) == 0


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_starts_itself_anew_with_too_much_memory(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, pool: str
) -> None:
    queue = f"grown-{pool}"
    worker = start_worker(
        *(broker_url, "-P", pool, "-c", "1", "--name", "big", "-Q", queue),
        CLOCHE_WORKERS__BIG__MAX_MEMORY_PER_CHILD="300M",
    )
    app = client_app(broker_url)
    assert app.send_task("tasks.probe.grow", (1,), queue=queue).get(timeout=20) == 1
    assert "starts anew" not in worker.output
    assert app.send_task("tasks.probe.grow", (400,), queue=queue).get(timeout=20) == 400
    wait_until(lambda: _looked(app, queue, worker.output), "a look at the memory", 30)
    assert " KiB (worker_max_memory_per_child)" in worker.output
    wait_until(lambda: worker.output.count(" ready.") == 2, "its new life", 30)
    assert app.send_task("tasks.probe.grow", (1,), queue=queue).get(timeout=20) == 1


def _looked(app: Celery, queue: str, output: str) -> bool:
    """The memory is looked at when a task ends, at most once a second."""
    if "starts anew" not in output:
        app.send_task("tasks.probe.grow", (0,), queue=queue, ignore_result=True)
    return "starts anew" in output


def test_a_limit_below_what_the_worker_needs_anyway_is_not_heeded(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    worker = start_worker(
        *(broker_url, "-P", "threads", "-c", "1", "--name", "low", "-Q", "low"),
        CLOCHE_WORKERS__LOW__MAX_MEMORY_PER_CHILD="1M",
    )
    assert "max_memory_per_child (1024 KiB) is not heeded" in worker.output
    app = client_app(broker_url)
    assert app.send_task("tasks.probe.grow", (1,), queue="low").get(timeout=20) == 1
    assert "starts anew" not in worker.output


def test_a_prefork_process_is_replaced_when_it_can_be_reaped_though_its_pipe_closed_before(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    """Celery looks once, when the pipe closes, and then every five seconds: never here."""
    start_worker(
        *(broker_url, "-P", "prefork", "-c", "1", "--name", "reaped", "-Q", "reaped"),
        app="tests.integration.app.unhurried",
        CLOCHE_WORKERS__REAPED__MAX_TASKS_PER_CHILD="1",
    )
    app = client_app(broker_url)
    first = app.send_task("tasks.unhurried.close_early", queue="reaped").get(timeout=20)
    assert app.send_task("tasks.unhurried.pid", queue="reaped").get(timeout=30) != first


def test_a_prefork_process_is_given_nothing_after_its_last_task(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    worker = start_worker(
        *(broker_url, "-P", "prefork", "-c", "2", "--name", "last", "-Q", "last"),
        app="tests.integration.app.unhurried",
        CLOCHE_WORKERS__LAST__MAX_TASKS_PER_CHILD="1",
    )
    app = client_app(broker_url)
    results = [app.send_task("tasks.unhurried.pid", queue="last") for _ in range(12)]
    assert len({result.get(timeout=30) for result in results}) == 12
    assert "given back" not in worker.output
