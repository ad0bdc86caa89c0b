"""Countdown and ETA on RabbitMQ: they wait in the server, and run once at their time."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery

from tests.acceptance.stack import wait_for
from tests.integration.rabbitmq.conftest import Worker, size


def stamps(ledger: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in ledger.read_text().splitlines() if ledger.exists() else []:
        text, at = line.split()
        found.setdefault(text, []).append(float(at))
    return found


def test_delayed_tasks_run_once_at_their_time_whoever_comes_first(
    app: Celery, worker: Worker, queue: str, tmp_path: Path
) -> None:
    """Published before any worker has declared anything: stock Celery loses them silently."""
    ledger, due = tmp_path / "ledger", {}
    for number, delay in enumerate([0.2, 0.9, 1, 1.05, 2.5, 3, 4, 5.7]):
        name = f"countdown-{number}"
        due[name] = time.time() + delay
        app.send_task("tasks.probe.stamp", (str(ledger), name), countdown=delay)
        due[f"eta-{number}"] = time.time() + delay
        app.send_task(
            "tasks.probe.stamp",
            (str(ledger), f"eta-{number}"),
            eta=app.now() + timedelta(seconds=delay),
        )
    worker("-c", "1")
    wait_for("all to run", lambda: len(stamps(ledger)) == len(due), 30)
    ran = stamps(ledger)
    assert {name: len(times) for name, times in ran.items()} == dict.fromkeys(due, 1)
    assert min(ran[name][0] - due[name] for name in due) > -0.05


def test_what_waits_takes_no_place_in_a_worker(
    app: Celery, worker: Worker, queue: str, tmp_path: Path
) -> None:
    started = worker("-c", "1", "--name", queue)
    ledger = tmp_path / "ledger"
    for number in range(20):
        app.send_task("tasks.probe.stamp", (str(ledger), f"late-{number}"), countdown=3600)
    app.send_task("tasks.probe.stamp", (str(ledger), "now")).get(timeout=20)
    node = f"{queue}@"
    inspect = app.control.inspect(timeout=5)
    inspect.limit = 1
    (scheduled,) = (
        tasks for name, tasks in (inspect.scheduled() or {}).items() if name.startswith(node)
    )
    assert scheduled == []
    assert size(app, queue) == 0
    assert list(stamps(ledger)) == ["now"]
    assert "block the worker" not in started.output


def test_retries_wait_in_the_server_too(app: Celery, worker: Worker, tmp_path: Path) -> None:
    worker("-c", "1")
    ledger = tmp_path / "ledger"
    app.send_task("tasks.probe.again", (str(ledger), 1.5), countdown=1)
    wait_for("three runs", lambda: len(stamps(ledger)) == 3, 30)
    ran = stamps(ledger)
    assert [len(ran[retry]) for retry in "012"] == [1, 1, 1]
    assert ran["1"][0] - ran["0"][0] >= 1.45
    assert ran["2"][0] - ran["1"][0] >= 1.45


def test_a_delay_of_many_years_is_refused_instead_of_lost(app: Celery) -> None:
    with pytest.raises(ValueError, match="years"):
        app.send_task("anything", countdown=2**28)
