"""The dashboard against a real broker and a real worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloche.process.events import record, record_hung
from cloche.testing import wait_until
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running, events_of


@pytest.fixture
def client(dashboard: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=dashboard.url) as made:
        wait_until(lambda: made.get("/api/snapshot").json()["snapshot"]["workers"] or None)
        yield made


def _task(client: httpx2.Client, task_id: str, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        answer = client.get(f"/api/tasks/{task_id}")
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 200 and found["state"] == state else None

    return wait_until(look, f"{task_id} {state}")


def test_the_snapshot_tells_workers_queues_and_health(client: httpx2.Client) -> None:
    body = client.get("/api/snapshot").json()
    assert body["ok"] is True
    assert [check["name"] for check in body["snapshot"]["health"]] == [
        *("broker", "results", "database")
    ]
    (worker,) = (w for w in body["snapshot"]["workers"] if w["name"] == "first@test")
    assert worker["concurrency"] == 4
    assert worker["pool"] == "threads"
    assert sorted(worker["queues"]) == ["celery", "download_queue"]
    queues = {queue["name"]: queue for queue in body["snapshot"]["queues"]}
    assert queues["download_queue"]["consumers"] == ["first@test"]
    assert queues["download_queue"]["length"] == 0


def test_a_task_appears_with_arguments_result_and_runtime(
    client: httpx2.Client, stack: Stack
) -> None:
    sent = stack.app.tasks["tests.integration.web.sample.add"].delay(2, 40)
    run = _task(client, sent.id, "SUCCESS")
    assert run["name"] == "tests.integration.web.sample.add"
    assert run["worker"] == "first@test"
    assert "42" in run["result"]
    assert "40" in run["args"]
    wait_until(lambda: sent.id in [t["id"] for t in client.get("/api/tasks").json()["tasks"]])
    page = client.get(f"/tasks/{sent.id}")
    assert page.status_code == 200
    assert "tests.integration.web.sample.add" in page.text


def test_a_failure_is_shown_with_its_traceback(client: httpx2.Client, stack: Stack) -> None:
    sent = stack.app.tasks["tests.integration.web.sample.fail"].delay("<b>no</b>")
    _task(client, sent.id, "FAILURE")

    def told() -> dict[str, Any] | None:
        """By its event, which comes after the result and names the exception."""
        run: dict[str, Any] = client.get(f"/api/tasks/{sent.id}").json()
        return run if "ValueError" in run["exception"] else None

    run = wait_until(told, "the event")
    assert "Traceback" in run["traceback"]
    page = client.get(f"/tasks/{sent.id}").text
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>no</b>" not in page
    failed = wait_until(lambda: client.get("/api/tasks?state=FAILURE").json()["tasks"] or None)
    assert {task["state"] for task in failed} == {"FAILURE"}


def test_an_unknown_task_is_not_found_in_words(client: httpx2.Client) -> None:
    assert client.get("/tasks/no-such-task").status_code == 404
    answer = client.get("/api/tasks/no-such-task")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_queue_with_backlog_and_no_consumer_is_the_verdict(
    client: httpx2.Client, stack: Stack
) -> None:
    add = stack.app.tasks["tests.integration.web.sample.add"]
    stack.app.amqp.queues.add("nobody")
    try:
        for priority in (0, 3, 9):
            add.apply_async((1, 1), queue="nobody", priority=priority)
        page = wait_until(
            lambda: text if "nobody consumes it" in (text := client.get("/").text) else None
        )
        assert "<strong>queue nobody</strong>: 3 waiting" in page
        queues = client.get("/api/snapshot").json()["snapshot"]["queues"]
        assert {q["name"]: q["length"] for q in queues}["nobody"] == 3
    finally:
        with stack.app.connection_for_write() as connection:
            connection.default_channel.queue_purge("nobody")
        stack.app.amqp.queues.pop("nobody")
        wait_until(lambda: "nobody consumes it" not in client.get("/").text)


def test_the_live_stream_sends_fragments_and_only_what_changed(
    client: httpx2.Client, stack: Stack
) -> None:
    stream = events_of(client, "/live")
    first = [next(stream)[0] for _ in range(5)]
    assert first == ["verdict", "health", "workers", "queues", "tasks"]
    sent = stack.app.tasks["tests.integration.web.sample.add"].delay(20, 3)
    deadline = time.monotonic() + 15
    for name, fragment in stream:
        if name == "tasks" and sent.id[:8] in fragment:
            break
        assert time.monotonic() < deadline
    stream.close()


def test_the_page_says_what_it_does_not_know(client: httpx2.Client) -> None:
    gaps = client.get("/api/snapshot").json()["events"]
    assert gaps[0]["since"] is None
    assert gaps[0]["until"] is not None
    assert "are unknown here" in client.get("/").text


def test_readiness_tells_each_check(client: httpx2.Client) -> None:
    body = client.get("/readyz").json()
    assert body["status"] == "ready"
    assert set(body["checks"]) == {"broker", "results", "database"}
    assert client.get("/healthz").json() == {"status": "alive"}


def _metrics(client: httpx2.Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by metric and labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _of(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_metrics_count_what_tasks_did_and_show_workers_and_queues(
    client: httpx2.Client, stack: Stack
) -> None:
    add, fail = (f"tests.integration.web.sample.{name}" for name in ("add", "fail"))
    where = {"hostname": "first@test", "queue_name": "celery"}
    ran, failed = (
        _of({"name": add, **where}),
        _of({"name": fail, "exception": "ValueError", **where}),
    )
    before = _metrics(client)
    for number in range(3):
        stack.app.tasks[add].delay(number, 1)
    stack.app.tasks[fail].delay("no")

    def rose(name: str, labels: tuple[tuple[str, str], ...]) -> float:
        return _metrics(client).get(name, {}).get(labels, 0) - before.get(name, {}).get(labels, 0)

    wait_until(lambda: rose("celery_task_succeeded_total", ran) == 3 or None)
    wait_until(lambda: rose("celery_task_failed_total", failed) == 1 or None)
    assert rose("celery_task_received_total", ran) == rose("celery_task_started_total", ran) == 3
    assert rose("celery_task_runtime_count", ran) == 3
    assert rose("celery_task_queue_wait_time_count", ran) == 3
    now = _metrics(client)
    assert now["celery_worker_up"][_of({"hostname": "first@test"})] == 1
    assert now["celery_queue_length"][_of({"queue_name": "celery"})] == 0
    assert now["celery_active_worker_count"][_of({"queue_name": "celery"})] == 1
    assert now["celery_active_process_count"][_of({"queue_name": "celery"})] == 4
    assert "cloche_event_gaps_total" in now


def test_a_worker_that_hung_is_told_of_for_ten_minutes(client: httpx2.Client, stack: Stack) -> None:
    run_dir = stack.settings.run_dir
    record(run_dir, "deaf-worker", worker="old@test", why="it fetches nothing")
    path = run_dir / "events.jsonl"
    event = json.loads(path.read_text())
    path.write_text(json.dumps({**event, "at": event["at"] - 601}) + "\n")
    record_hung(run_dir, "first@test", "its loop stands still", pid=1)
    wait_until(lambda: "its loop stands still" in client.get("/").text or None)
    page = client.get("/").text
    assert "<strong>worker first</strong>: it hung" in page
    assert "old@test" not in page
