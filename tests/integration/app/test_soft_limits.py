"""A soft time limit is the task's, not the process's."""

from __future__ import annotations

import signal
from collections.abc import Callable

import psutil
from celery import Celery

from cloche.testing import wait_until
from tests.integration.app.conftest import StartWorker

ClientApp = Callable[..., Celery]

LIMITS = "tasks.probe.limits"
NOTE = "tasks.probe.note"


def test_a_limit_that_passes_when_its_task_has_ended_leaves_the_process_alone(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    app = client_app(broker_url)
    worker = start_worker(broker_url, "-P", "prefork", "-c", "1", "--name", "soft", "-Q", "soft")
    before = app.send_task(LIMITS, queue="soft").get(timeout=20)["pid"]
    for _ in range(20):  # as billiard's parent does, a moment too late
        psutil.Process(before).send_signal(signal.SIGUSR1)
        assert app.send_task(LIMITS, queue="soft").get(timeout=20)["pid"] == before
    assert "error: SoftTimeLimitExceeded" not in worker.output


def test_a_limit_that_passes_in_a_task_ends_it(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, tmp_path: object
) -> None:
    app = client_app(broker_url)
    start_worker(broker_url, "-P", "prefork", "-c", "1", "--name", "soft", "-Q", "softly")
    late = app.send_task(
        NOTE, (f"{tmp_path}/ledger", "x", 30), queue="softly", soft_time_limit=1, time_limit=20
    )
    wait_until(late.ready, "the limit", 15)
    assert "SoftTimeLimitExceeded" in repr(late.result)
