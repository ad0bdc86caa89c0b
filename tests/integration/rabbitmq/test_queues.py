"""A hardened application's queues and delays on RabbitMQ, as the server and workers see them."""

from __future__ import annotations

import gc
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from kombu import Queue as StockQueue
from kombu.transport.native_delayed_delivery import (
    declare_native_delayed_delivery_exchanges_and_queues,
)

from cloche.app import harden
from cloche.cluster import Cluster
from cloche.settings import Settings, load
from cloche.testing import RabbitProcess, wait_until
from tests.integration.rabbitmq.conftest import Worker, client, size


def arguments(rabbit: RabbitProcess, queue: str) -> dict[str, Any]:
    listed = rabbit.control("list_queues", "name", "arguments", "--formatter", "json")
    (found,) = [row["arguments"] for row in json.loads(listed) if row["name"] == queue]
    return {key: value for key, _, value in found} if isinstance(found, list) else found


def test_queues_are_replicated_limited_and_have_a_place_for_dead_letters(
    app: Celery, rabbit: RabbitProcess, queue: str
) -> None:
    app.send_task("anything", ignore_result=True)
    found = arguments(rabbit, queue)
    assert found["x-queue-type"] == "quorum"
    assert found["x-delivery-limit"] == 2
    assert found["x-dead-letter-routing-key"] == "cloche.dead"
    assert found["x-dead-letter-strategy"] == "at-least-once"
    assert arguments(rabbit, "cloche.dead")["x-queue-type"] == "quorum"


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_every_pool_works(
    app: Celery, worker: Worker, queue: str, tmp_path: Path, pool: str
) -> None:
    worker("-c", "4", "-P", pool)
    sent = [app.send_task("tasks.probe.limits") for _ in range(50)]
    sent.append(app.send_task("tasks.probe.doze", (str(tmp_path / "ledger"), "x", 0.1)))
    for result in sent:
        result.get(timeout=30)
    wait_until(lambda: size(app, queue) == 0, "all to be acknowledged")


def test_a_worker_has_no_more_than_its_places(
    app: Celery, worker: Worker, queue: str, tmp_path: Path
) -> None:
    started = worker("-c", "2")
    ledger = tmp_path / "ledger"
    for number in range(6):
        app.send_task("tasks.probe.note", (str(ledger), str(number), 30), ignore_result=True)
    wait_until(lambda: ledger.exists() and ledger.read_text().count("start") == 2, "both to run")
    assert size(app, queue) == 4
    assert "Global QoS is disabled" in started.output


def test_a_queue_that_exists_as_classic_is_left_as_it_is_and_told(
    app: Celery, rabbit: RabbitProcess, worker: Worker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Connection(rabbit.url) as connection:
        StockQueue(queue, durable=True)(connection.default_channel).declare()
    result = app.send_task("tasks.probe.limits")
    app.send_task("tasks.probe.limits")
    assert sum(f"queue {queue} exists" in text for text in caplog.messages) == 1
    started = worker("-c", "1")
    assert result.get(timeout=20)["acks_late"] is True
    assert app.send_task("tasks.probe.limits", countdown=1).get(timeout=20)
    assert started.output.count(f"queue {queue} exists with other arguments") == 1
    assert "x-queue-type" not in arguments(rabbit, queue)


def test_queues_the_application_declares_itself_are_left_alone(
    rabbit: RabbitProcess, queue: str
) -> None:
    own = Celery("theirs", broker=rabbit.url)
    own.conf.task_default_queue = queue
    own.conf.task_queues = [StockQueue(queue, routing_key=queue)]
    done = harden(own, load({"broker.quorum_queues": True}, environ={}).settings)
    own.send_task("anything", ignore_result=True)
    assert "x-queue-type" not in arguments(rabbit, queue)
    assert any(queue in note for note in done.notes)
    assert own.conf.broker_transport_options["confirm_publish"] is True


def test_an_existing_applications_queues_stay_as_it_declares_them_unless_asked(
    rabbit: RabbitProcess, queue: str
) -> None:
    """Else its other processes, which know nothing of Cloche, are refused by the server."""

    def theirs(name: str) -> Celery:
        made = Celery("theirs", broker=rabbit.url)
        made.conf.update(task_default_queue=name, task_routes={"other": {"queue": f"{name}.other"}})
        return made

    def use(made: Celery) -> None:
        for task in ("anything", "other"):
            made.send_task(task, ignore_result=True)
        made.send_task("anything", queue=f"{queue}.unknown", ignore_result=True)

    hardened = theirs(queue)
    done = harden(hardened, load({}, environ={}).settings)
    assert any("broker.quorum_queues" in note for note in done.notes)
    use(hardened)
    use(theirs(queue))
    for name in (queue, f"{queue}.other", f"{queue}.unknown"):
        assert arguments(rabbit, name) == {}
        assert size(hardened, name) == 2

    asked = theirs(f"{queue}.quorum")
    harden(asked, load({"broker.quorum_queues": True}, environ={}).settings)
    asked.send_task("anything", ignore_result=True)
    assert arguments(rabbit, f"{queue}.quorum")["x-delivery-limit"] == 2


def test_an_application_with_priorities_keeps_classic_queues(
    rabbit: RabbitProcess, queue: str
) -> None:
    own = Celery("theirs", broker=rabbit.url)
    own.conf.update(task_default_queue=queue, task_queue_max_priority=5)
    harden(own, load({"broker.quorum_queues": True}, environ={}).settings)
    own.send_task("anything", ignore_result=True, priority=3)
    assert arguments(rabbit, queue) == {"x-max-priority": 5}


def test_a_named_queue_is_made_like_the_others(
    app: Celery, rabbit: RabbitProcess, queue: str
) -> None:
    app.send_task("anything", queue=f"{queue}.more", ignore_result=True)
    assert arguments(rabbit, f"{queue}.more")["x-queue-type"] == "quorum"
    assert size(app, f"{queue}.more") == 1
    # "#.more" as a binding would also match what is meant for other queues.
    app.send_task("anything", queue="more", ignore_result=True)
    assert size(app, f"{queue}.more") == 1


def test_the_dashboards_reader_sees_workers_lengths_and_health(
    app: Celery, worker: Worker, queue: str, tmp_path: Path
) -> None:
    worker("-c", "1", "--name", queue)
    for _ in range(3):
        app.send_task("tasks.probe.note", (str(tmp_path / "l"), "x", 30), ignore_result=True)
    cluster = Cluster(app, Settings())

    def seen() -> Any:
        now = cluster.look()
        (one,) = [found for found in now.queues if found.name == queue]
        return (now, one) if one.length == 2 and one.consumers else None

    now, one = wait_until(seen, "the worker and its queue to be seen")
    assert [check.ok for check in now.health] == [True, True, True]
    assert not now.gaps
    assert one.consumers == tuple(name for name in one.consumers if name.startswith(queue))
    cluster.stop()


def test_a_publish_returns_when_the_message_is_safe(app: Celery, queue: str) -> None:
    app.send_task("anything", ignore_result=True)
    with app.producer_or_acquire() as producer:
        assert producer.channel._confirm_selected
    # Stock Celery takes this for sent; RabbitMQ has closed the channel and dropped it.
    with pytest.raises(Exception, match=r"max size|PRECONDITION_FAILED"):
        app.send_task("anything", ("x" * 3_000_000,), ignore_result=True)
    assert size(app, queue) == 1


# py-amqp 5.4 leaves the socket of a handshake that was not answered to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_silent_server_fails_a_publish_instead_of_holding_it(
    rabbit: RabbitProcess, broker_url: str, queue: str
) -> None:
    made = client(
        rabbit.url,
        broker_url,
        queue,
        **{
            "broker.socket_timeout": "300ms",
            "broker.connect_timeout": "300ms",
            "broker.publish_timeout": "500ms",
        },
    )
    made.send_task("anything", ignore_result=True)
    rabbit.freeze()
    begun = time.monotonic()
    try:
        with pytest.raises(Exception, match=r"[Tt]imed? ?out|closed|reset"):
            made.send_task("anything", ignore_result=True)
        assert time.monotonic() - begun < 30
    finally:
        rabbit.thaw()
        made.pool.force_close_all()
        gc.collect()


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
    wait_until(lambda: len(stamps(ledger)) == len(due), "all to run", 30)
    ran = stamps(ledger)
    assert {name: len(times) for name, times in ran.items()} == dict.fromkeys(due, 1)
    assert min(ran[name][0] - due[name] for name in due) > -0.05


def test_stock_loses_what_is_delayed_before_the_queues_first_worker(
    rabbit: RabbitProcess, queue: str
) -> None:
    stock = Celery("stock", broker=rabbit.url)
    stock.conf.update(
        task_default_queue=queue,
        task_default_exchange=queue,
        task_default_exchange_type="topic",
        task_default_routing_key="word",
        task_default_queue_type="quorum",
        broker_transport_options={"confirm_publish": True},
    )
    with stock.connection_for_write() as connection:  # as a worker of other queues has done
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
    with pytest.raises(ValueError, match="positive"):
        stock.send_task("anything", countdown=0.5, ignore_result=True)
    for countdown in (1, None):
        stock.send_task("anything", countdown=countdown, ignore_result=True)
    time.sleep(3)
    assert size(stock, queue) == 1, "the one without a delay"


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
    wait_until(lambda: len(stamps(ledger)) == 3, "three runs", 30)
    ran = stamps(ledger)
    assert [len(ran[retry]) for retry in "012"] == [1, 1, 1]
    assert ran["1"][0] - ran["0"][0] >= 1.45
    assert ran["2"][0] - ran["1"][0] >= 1.45


def test_a_delay_of_many_years_is_refused_instead_of_lost(app: Celery) -> None:
    with pytest.raises(ValueError, match="years"):
        app.send_task("anything", countdown=2**28)
