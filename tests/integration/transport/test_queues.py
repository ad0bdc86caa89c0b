"""Queue operations, on queues with real messages."""

from __future__ import annotations

import time

import pytest
import redis
from celery import Celery

from cloche.broker import delayed
from cloche.broker.keys import Keys
from cloche.broker.queues import QueueLength, Queues
from cloche.testing import wait_until
from tests.integration.transport.harness import APP, Bench


@pytest.fixture
def queues(bench: Bench) -> Queues:
    return Queues(redis.Redis(port=bench.broker.port))


def test_length_tells_ready_by_priority_delayed_and_in_flight_apart(
    bench: Bench, queues: Queues
) -> None:
    for priority in (0, 3, 3, 9):
        bench.send(priority, priority=priority)
    bench.send(5, countdown=60)
    length = queues.length("celery")
    assert length.ready == {0: 1, 3: 2, 6: 0, 9: 1}
    assert (length.waiting, length.delayed, length.inflight) == (4, 1, 0)
    queues.purge("celery")
    bench.send(0, seconds=5)
    bench.worker("threads", 1)
    wait_until(lambda: queues.length("celery").inflight == 1, "it is in flight")


def test_a_paused_queue_is_not_fetched_until_resumed(bench: Bench, queues: Queues) -> None:
    bench.worker("solo", 1, conf={"task_queues": None})
    queues.pause("celery")
    bench.send(0)
    time.sleep(1)
    assert not bench.done(1)
    assert queues.paused() == ["celery"]
    queues.resume("celery")
    wait_until(lambda: bench.done(1), "resumed", 30)


def test_peek_shows_the_next_in_order_and_leaves_them(bench: Bench, queues: Queues) -> None:
    for number, priority in enumerate((6, 0, 0)):
        bench.send(number, priority=priority, task_id=f"task-{number}")
    peeked = queues.peek("celery", 2)
    assert [one.task_id for one in peeked] == ["task-1", "task-2"]
    assert peeked[0].task == f"{APP}.record"
    assert queues.peek("celery")[-1].priority == 6
    assert queues.length("celery").waiting == 3


def test_the_age_of_the_oldest_counts_from_its_publishing(bench: Bench, queues: Queues) -> None:
    assert queues.oldest_age("celery") is None
    bench.send(0)
    time.sleep(0.3)
    bench.send(1)
    age = queues.oldest_age("celery")
    assert age is not None
    assert 0.3 <= age < 5


def test_the_age_of_a_stock_producers_message_is_not_known(bench: Bench, queues: Queues) -> None:
    stock = Celery(broker=f"redis://127.0.0.1:{bench.broker.port}/0")
    stock.send_task("x")
    stock.close()
    assert queues.oldest_age("celery") is None


def test_move_appends_to_another_queue_oldest_first(bench: Bench, queues: Queues) -> None:
    for number in range(5):
        bench.send(number, task_id=f"task-{number}")
    assert queues.move("celery", "elsewhere", limit=3) == 3
    assert [one.task_id for one in queues.peek("elsewhere")] == ["task-0", "task-1", "task-2"]
    assert [one.task_id for one in queues.peek("celery")] == ["task-3", "task-4"]


def test_a_purge_can_be_undone(bench: Bench, queues: Queues) -> None:
    for number in range(4):
        bench.send(number, task_id=f"task-{number}", priority=3 * (number % 2))
    before = [one.task_id for one in queues.peek("celery")]
    snapshot = queues.purge("celery")
    assert snapshot is not None
    assert snapshot.messages == 4
    assert queues.length("celery").waiting == 0
    bench.send(9, task_id="later")
    assert queues.snapshots() == [snapshot]
    assert queues.restore(snapshot.id) == 4
    after = [one.task_id for one in queues.peek("celery")]
    assert after == [*before[:2], "later", *before[2:]]
    assert queues.snapshots() == []
    assert queues.restore(snapshot.id) == 0


def test_what_is_delayed_is_seen_moved_purged_and_restored(bench: Bench, queues: Queues) -> None:
    bench.send(0, task_id="ready")
    bench.send(1, countdown=7200, task_id="later", priority=6)
    bench.send(2, countdown=3600, task_id="sooner")
    bench.send(3, countdown=3700, task_id="ready")  # the same id once more
    shown = [("ready", "ready"), ("sooner", "delayed"), ("ready", "delayed"), ("later", "delayed")]
    peeked = queues.peek("celery")
    assert [(one.task_id, one.part) for one in peeked] == shown
    assert [one.priority for one in peeked] == [0, 0, 0, 6]
    assert [one.due and round((one.due - time.time()) / 3600) for one in peeked] == [None, 1, 1, 2]
    assert len(queues.peek("celery", 2)) == 2
    assert queues.move("celery", "elsewhere", limit=2) == 2
    assert [(one.task_id, one.part) for one in queues.peek("elsewhere")] == shown[:2]
    assert queues.move("elsewhere", "celery") == 2
    assert queues.peek("celery") == peeked
    snapshot = queues.purge("celery")
    assert snapshot is not None
    assert snapshot.messages == 4
    assert queues.length("celery") == QueueLength({0: 0, 3: 0, 6: 0, 9: 0}, 0, 0)
    bench.send(4, countdown=3600, task_id="sooner")
    assert queues.restore(snapshot.id) == 4
    assert len(queues.peek("celery")) == 5
    assert delayed.revoke(bench.client, Keys(), "sooner") == 2
    assert queues.discard("celery") == 3
    assert not bench.client.keys("cloche:delayed*")
    assert not bench.client.keys("cloche:snapshot*")


def test_what_a_worker_has_is_seen_and_not_purged(bench: Bench, queues: Queues) -> None:
    bench.send(0, seconds=3, task_id="runs", priority=3)
    bench.worker("threads", 1, conf={"worker_prefetch_multiplier": 1})
    wait_until(lambda: bench.ledger.count("start"), "it runs")
    bench.send(1, countdown=3600, task_id="delayed")
    assert [(one.task_id, one.part, one.priority) for one in queues.peek("celery")] == [
        ("delayed", "delayed", 0),
        ("runs", "inflight", 3),
    ]
    assert bench.app.control.purge() == 1
    assert queues.length("celery").inflight == 1
    wait_until(lambda: bench.done(1), "it ended")


def test_purging_an_empty_queue_makes_no_snapshot(queues: Queues) -> None:
    assert queues.purge("nothing") is None
    assert queues.snapshots() == []
