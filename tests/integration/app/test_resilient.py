"""Tasks that outlast an outage, in workers: retried, then degraded; and what is registered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from cloche.app.resilience import Resilience, resilient
from cloche.errors import SettingsError
from cloche.testing import clean_environ, wait_until
from tests.integration.app.conftest import StartWorker

ClientApp = Callable[..., Celery]
ROOT = str(Path(__file__).parents[3])


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_connection_errors_are_retried_and_then_degraded(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, pool: str
) -> None:
    queue = f"resilient-{pool}"
    worker = start_worker(
        *(broker_url, "-P", pool, "-c", "1", "--name", queue, "-Q", queue),
        app="tests.integration.app.resilient_app",
    )
    app = client_app(broker_url)

    def run(task: str, *args: object) -> object:
        name = f"tests.integration.app.resilient_app.{task}"
        return app.send_task(name, args, queue=queue).get(timeout=30)

    assert run("degraded", 7) == ["fallback", "ConnectionError", 7]
    assert run("adegraded", 8) == ["fallback", "TimeoutError", 8]
    assert run("bound", 9) == ["fallback", "ConnectionError", 9]
    assert run("by_option", 1) == "third time"
    assert worker.output.count("resilient_app.degraded[") >= 3
    assert "degraded: retry" not in worker.output
    assert ": retry 1 of 2 in 0.0 s" in worker.output
    assert ": degraded to give_less after 2 retries" in worker.output
    assert "args='(7,)'" in worker.output or "args=(7,)" in worker.output
    with pytest.raises(Exception, match="not a connection"):
        run("wrong")
    with pytest.raises(Exception, match="gone for good"):
        run("given_up")


def test_a_function_called_outside_of_a_worker_is_what_it_was() -> None:
    @resilient(retries=1, fallback=lambda error: "never")
    def body(x: int) -> int:
        if x:
            raise ConnectionError("away")
        return x

    assert body(0) == 0
    with pytest.raises(ConnectionError):
        body(1)


@pytest.mark.parametrize("policy", [{"retries": -1}, {"delay": -1.0}, {"jitter": 2.0}])
def test_a_policy_that_cannot_be_is_refused(policy: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="cannot be"):
        Resilience(**policy)  # type: ignore[arg-type]


def test_pauses_grow_as_asked() -> None:
    assert [Resilience().pause(n) for n in (1, 2, 3)] == [10, 10, 10]
    assert [Resilience(exponential=True).pause(n) for n in (1, 2, 3)] == [10, 20, 40]
    assert 5 <= Resilience(jitter=0.5).pause(1) <= 10


def test_what_is_missing_or_misnamed_is_told_when_a_worker_starts(
    broker_url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(
        *(broker_url, "-c", "1", "-Q", "registered"),
        app="tests.integration.app.resilient_app",
        CLOCHE_EXPECT_TASKS="tasks.mail.send,tasks.named.well",
        CLOCHE_ROUTES='[{"pattern": "tasks.mial.*", "queue": "mail"}]',
        CLOCHE_BEAT__SCHEDULES='{"nightly": {"task": "tasks.mail.send", "every": 60}}',
    )
    for words in (
        "the task tasks.mail.send of expect_tasks is not registered",
        "route 'tasks.mial.*' -> 'mail' matches no registered task",
        "schedule nightly names the task tasks.mail.send, which is not registered",
        "names not of the form tasks.<family>.<name>: tests.integration.app.resilient_app.",
    ):
        assert words in worker.output
    assert "tasks.named.well of expect_tasks" not in worker.output


def test_a_module_that_cannot_be_imported_ends_the_worker_with_its_traceback(
    broker_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    (tmp_path / "broken_tasks.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "broken_proj.py").write_text(
        "from cloche import create_app\napp = create_app('broken', include=['broken_tasks'])\n"
    )
    worker = start_worker(broker_url, app="broken_proj", ready=False)
    wait_until(lambda: worker.ended, "its end", 30)
    assert worker.process.returncode == 5
    assert "a task module cannot be imported: " in worker.output
    assert "broken_tasks.py:1: ModuleNotFoundError" in worker.output
    assert "Traceback (most recent call last)" in worker.output


def test_tasks_are_listed_with_what_celery_knows_of_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cloche", "tasks", "--json"),
            *("-A", "tests.integration.app.resilient_app"),
        ],
        cwd=tmp_path,
        env=clean_environ(PYTHONPATH=ROOT),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = {task["name"]: task for task in json.loads(done.stdout)}
    well = found["tasks.named.well"]
    assert (well["module"], well["queue"]) == ("tests.integration.app.resilient_app", "default")
    assert (well["max_retries"], well["time_limit"], well["coroutine"]) == (3, 30, False)
    assert found["tests.integration.app.resilient_app.adegraded"]["coroutine"] is True
    assert found["cloche.download.fetch"]["queue"] == "download_queue"
    assert "names not of the form" in done.stderr
