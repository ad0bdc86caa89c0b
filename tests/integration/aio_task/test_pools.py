"""One module, unmodified, on every pool: its connections and its tasks behave the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from celery import chain, signature
from celery.result import ResultSet

from cloche.testing import wait_until
from tests.integration.aio_task.conftest import ROOT, Project

TASKS = 500
POOL_SIZE = 3


def on(*pools: str) -> pytest.MarkDecorator:
    """Only on these: on the others Celery has no limits, cannot terminate a task, …"""
    return pytest.mark.parametrize("project", pools, indirect=True, scope="module")


def judge(results: list[dict[str, Any]], processes: int) -> None:
    assert sorted(result["number"] for result in results) == list(range(TASKS))
    assert all(result["right"] for result in results)
    assert len({result["pid"] for result in results}) <= processes
    assert 1 <= max(result["connections"] for result in results) <= POOL_SIZE * processes


def test_connections_at_module_level_serve_500_tasks_and_stay_within_the_pool(
    project: Project,
) -> None:
    sent = [project.send("work", number) for number in range(TASKS)]
    judge(ResultSet(sent, app=project.app).join_native(timeout=120), project.processes)
    assert len([line for line in project.lines if line.startswith("opened")]) <= project.processes


def test_the_same_module_serves_500_eager_tasks(eager: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.aio_task.project"],
        cwd=ROOT,
        env=eager.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    judge(json.loads(done.stdout), 1)
    opened, closed = eager.lines
    assert (opened.split()[0], closed.split()[0]) == ("opened", "closed")


def test_retries_progress_and_the_request_work_in_the_coroutine(project: Project) -> None:
    assert project.send("flaky", 2).get(timeout=60)[0] == 2
    # Without a retry: Celery may store that of an earlier try later than the next one begins.
    assert project.send("flaky", 0).get(timeout=60) == [0, "PROGRESS"]


def test_automatic_retries_and_models_work_on_coroutines(project: Project) -> None:
    assert project.send("stumbling", {"x": 40}).get(timeout=60) == {"x": 42}


def test_chains_of_coroutines_pass_their_values(project: Project) -> None:
    parts = [
        signature("project.add", args, app=project.app, queue=project.name)
        for args in ([1, 2], [10], [100])
    ]
    assert chain(*parts, app=project.app).apply_async().get(timeout=60) == 113


@on("prefork", "threads", "asyncio")
def test_a_coroutine_sends_a_task_and_awaits_its_result(project: Project) -> None:
    assert project.send("family").get(timeout=60) == 3


@on("prefork", "asyncio")
def test_a_soft_limit_lets_the_coroutine_tidy_up_and_return(project: Project) -> None:
    before = len(project.lines)
    assert project.send("slow", 60, soft_time_limit=1).get(timeout=60) == "limited"
    assert project.lines[before:] == ["started", "tidied up"]


@on("prefork", "asyncio")
def test_a_terminated_task_tidies_up(project: Project) -> None:
    before = len(project.lines)
    result = project.send("slow", 60)
    wait_until(lambda: "started" in project.lines[before:], "its start", 60)
    project.app.control.revoke(result.id, terminate=True)
    wait_until(lambda: "tidied up" in project.lines[before:], "its end", 60)
    wait_until(lambda: result.state == "REVOKED", "its state", 60)


def test_a_stopping_worker_closes_what_it_opened(project: Project) -> None:
    project.send("work", 0).get(timeout=60)
    project.stop()
    # A pool process that was terminated had no time to.
    opened = [line.split()[1] for line in project.lines if line.startswith("opened")]
    closed = [line.split()[1] for line in project.lines if line.startswith("closed")]
    assert set(closed) <= set(opened)
    assert len(closed) == len(set(closed)) >= len(opened) - 1 >= 0
    assert opened[-1] in closed
    assert "Traceback" not in project.output


@on("prefork", "solo", "asyncio")
def test_a_worker_that_is_told_to_leave_at_once_lets_the_coroutine_tidy_up(
    project: Project,
) -> None:
    if not project.running:
        project.start()
    before = len(project.lines)
    project.send("slow", 60)
    wait_until(lambda: "started" in project.lines[before:], "its start", 60)
    project.signal(signal.SIGQUIT)
    wait_until(lambda: "tidied up" in project.lines[before:], "its end", 60)
    project.wait_end()
