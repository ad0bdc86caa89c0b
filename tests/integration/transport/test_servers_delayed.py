"""Many delayed tasks: they wait on the server, each until its own time, and cost a worker nothing.

A million of them: ``python -m bench delayed``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest

from cloche.broker.keys import Keys
from cloche.broker.publish.bulk import publish_many
from cloche.testing import wait_until
from tests.integration.transport.harness import APP, Bench

pytestmark = pytest.mark.long

KEYS = Keys()
WAITING = KEYS.delayed("celery")
MIB = 1024**2


def test_five_thousand_wait_on_the_server_and_run_once_when_due(bench: Bench) -> None:
    far, near = 4_500, 500
    worker = bench.worker("threads", 4)
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    record = bench.app.signature(f"{APP}.record")
    began = time.time()
    published = publish_many(
        bench.app,
        [
            *(record.clone([n]).set(countdown=3600 + n) for n in range(far)),
            *(record.clone([far + n]).set(countdown=3 + n / near) for n in range(near)),
        ],
    )
    assert published.ok
    assert len(set(published.ids)) == far + near
    assert bench.client.zcard(WAITING) == far + near
    assert bench.inflight() == 0
    wait_until(lambda: len(bench.ledger.count("end")) == near, "all that are due ran", 30)
    runs = bench.ledger.count("start")
    assert set(runs) == set(range(far, far + near))
    assert set(runs.values()) == {1}
    assert bench.client.zcard(WAITING) == bench.client.hlen(KEYS.delayed_messages("celery")) == far
    assert process.memory_info().rss - before < 10 * MIB
    for effect in bench.ledger.effects("start"):
        due = began + 3 + (effect.number - far) / near
        assert effect.at >= due - 0.05, "none starts early"


def test_bulk_publishing_keeps_each_tasks_own_time(bench: Bench) -> None:
    record = bench.app.signature(f"{APP}.record")
    now = datetime.now(UTC)
    etas = [now + timedelta(seconds=90 + 7 * n) for n in range(20)]
    signatures = [
        *(record.clone([n]).set(eta=eta) for n, eta in enumerate(etas)),
        record.clone([20]).set(eta=now - timedelta(seconds=5)),
        record.clone([21]),
        record.clone([22]).set(countdown=60, priority=9),
    ]
    ids = publish_many(bench.app, signatures).ids
    waiting: Any = bench.client.zrange(WAITING, 0, -1, withscores=True)
    due = {str(task_id): float(ms) / 1000 for task_id, ms in waiting}
    for task_id, eta in zip(ids, etas, strict=False):
        assert abs(due[task_id] - eta.timestamp()) < 1
    assert set(due) == {*ids[:20], ids[22]}
    text = str(bench.client.hget(KEYS.delayed_messages("celery"), ids[22]))
    assert text.startswith("\x06\x169:"), "its priority is kept"
    assert bench.client.llen("celery") == 2, "what is due already is on the queue"
    bench.worker("solo", 1)
    wait_until(lambda: bench.done(2), "and runs at once")
    assert set(bench.ledger.count("end")) == {20, 21}


def test_revoking_takes_every_message_of_the_tasks_off_the_server(bench: Bench) -> None:
    for number in range(20):
        bench.send(number, countdown=600, task_id=f"task-{number}")
    bench.send(3, countdown=900, task_id="task-3")
    bench.send(4, countdown=900, queue="other", task_id="task-4")
    worker = bench.worker("threads", 1)
    bench.app.control.revoke(["task-3", "task-4", "unknown"])
    wait_until(lambda: "revoke: 4 delayed messages removed" in worker.log, "they are removed")
    assert bench.client.zcard(WAITING) == bench.client.hlen(KEYS.delayed_messages("celery")) == 18
    assert bench.client.zcard(KEYS.delayed("other")) == 0
    bench.app.control.revoke("task-5")
    wait_until(lambda: bench.client.zcard(WAITING) == 17, "another")
    worker.stop()
    assert bench.client.zcard(WAITING) == 17, "the others stay"
