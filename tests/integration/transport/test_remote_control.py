"""Celery's remote control, where the transport keeps what a stock worker would hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cloche.testing import wait_until
from tests.integration.transport.harness import APP, Bench


def test_scheduled_lists_the_tasks_that_wait_on_the_server(bench: Bench) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    bench.send(2, countdown=7200, task_id="later")
    bench.send(1, eta=due, task_id="sooner", seconds=1.5)
    bench.client.hset("cloche:delayed-messages:celery", "later#2", b":{broken")
    bench.client.zadd("cloche:delayed:celery", {"later#2": 1e15})
    bench.worker("solo", 1)
    inspect = bench.app.control.inspect(timeout=20, limit=1)
    ((worker, found),) = (inspect.scheduled() or {}).items()
    assert [one["request"]["id"] for one in found] == ["sooner", "later"]
    first = found[0]
    assert first["eta"] == due.isoformat()
    assert first["request"]["hostname"] == worker
    assert first["request"]["name"] == f"{APP}.record"
    assert first["request"]["args"] == [1]
    assert first["request"]["kwargs"] == {"seconds": 1.5}
    bench.app.control.revoke("sooner")
    wait_until(
        lambda: [one["request"]["id"] for one in inspect.scheduled()[worker]] == ["later"],
        "the revoked one is not listed",
    )
