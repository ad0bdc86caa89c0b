"""Bulk publish and publishing through an outage."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery, signals

from cloche.broker.publish import bulk
from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport.harness import Bench, connections
from tests.integration.transport.proxy import Proxy


@pytest.fixture
def task(bench: Bench) -> Any:
    @bench.app.task(name="demo.add", shared=False)
    def add(x: object, y: object = 0) -> None:
        raise AssertionError("only published")

    return add


def messages(bench: Bench, queue: str = "celery") -> list[dict[str, Any]]:
    """Oldest first, bodies decoded."""
    found = [json.loads(raw) for raw in reversed(bench.client.lrange(queue, 0, -1))]
    for one in found:
        one["body"] = json.loads(base64.b64decode(one["body"]))
    return found


def without_ids(one: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(one))
    for name in ("id", "root_id"):
        copy["headers"].pop(name)
    for name in ("correlation_id", "delivery_tag"):
        copy["properties"].pop(name)
    assert copy.pop("cloche")["at"] > 0
    return copy


@pytest.mark.parametrize(
    "argument",
    [
        1,
        None,
        'quote " backslash \\ newline \n emoji 🔔',
        "@@cloche-id@@",
        "x" * 3000,
        [1, {"a": (2,)}],
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        uuid.UUID(int=5),
        3.5,
    ],
)
def test_a_message_from_the_template_is_celerys_message(
    bench: Bench, task: Any, argument: object
) -> None:
    options = {"queue": "q", "time_limit": 9}
    task.apply_async((argument,), **options)
    assert bulk.map_delay(task, [argument], **options).ok
    by_celery, by_template = messages(bench, "q")
    assert without_ids(by_template) == without_ids(by_celery)
    uuid.UUID(by_template["headers"]["id"])
    assert by_template["properties"]["correlation_id"] == by_template["headers"]["id"]


def test_map_delay_publishes_all_in_order_with_ids_of_their_own(bench: Bench, task: Any) -> None:
    published = bulk.map_delay(task, range(2500))
    assert published.ok
    assert len(set(published.ids)) == len(published) == 2500
    found = messages(bench)
    assert [one["body"][0][0] for one in found] == list(range(2500))
    assert [one["headers"]["id"] for one in found] == published.ids


def test_starmap_delay_takes_arguments_and_mappings(bench: Bench, task: Any) -> None:
    assert bulk.starmap_delay(task, [(1, 2), {"x": 3, "y": 4}]).ok
    assert [one["body"][:2] for one in messages(bench)] == [[[1, 2], {}], [[], {"x": 3, "y": 4}]]


def test_publish_many_takes_any_signature(bench: Bench, task: Any) -> None:
    published = bulk.publish_many(
        bench.app,
        [
            task.s(1),
            task.s(2).set(queue="other"),
            task.s(3).set(countdown=60),
            task.si(4) | task.si(5),
            task.s(6).set(task_id="mine"),
        ],
    )
    assert published.ok
    assert [one["body"][0] for one in messages(bench)] == [[1], [4], [6]]
    assert messages(bench)[1]["body"][2]["chain"][0]["args"] == [5]
    assert messages(bench, "other")[0]["body"][0] == [2]
    assert bench.client.zcard("cloche:delayed:celery") == 1
    assert published.ids[-1] == "mine"


def test_who_listens_to_publishing_hears_of_every_task(bench: Bench, task: Any) -> None:
    heard: list[str] = []

    def listen(headers: dict[str, Any], **_: Any) -> None:
        heard.append(headers["id"])

    signals.before_task_publish.connect(listen)
    try:
        published = bulk.map_delay(task, range(3))
    finally:
        signals.before_task_publish.disconnect(listen)
    assert heard == published.ids


def test_delayed_ones_wait_and_run_when_due(bench: Bench) -> None:
    app = Celery(broker=bench.url, set_as_current=False)

    @app.task(name="tests.integration.transport.ledger_app.record", shared=False)
    def record(number: int) -> None:
        raise AssertionError("runs in the worker")

    bench.worker("threads", 4)
    assert bulk.map_delay(record, range(1200), countdown=1.5).ok
    assert bench.client.zcard("cloche:delayed:celery") == 1200
    wait_until(lambda: bench.done(1200), "all ran", 30)
    assert max(bench.ledger.count("start").values()) == 1
    assert not bench.client.keys("cloche:delayed*")
    app.close()


def test_a_chunk_that_cannot_be_sent_is_reported(bench: Bench, task: Any) -> None:
    bench.client.config_set("maxmemory", 1)
    bench.client.config_set("maxmemory-policy", "noeviction")
    try:
        published = bulk.map_delay(task, range(1500))
    finally:
        bench.client.config_set("maxmemory", 0)
    assert not published.ok
    assert published.ids == []
    assert sum(len(chunk.ids) for chunk in published.failed) == 1500
    assert "memory" in published.failed[0].error
    assert bench.client.llen("celery") == 0


def test_a_chunk_whose_reply_was_cut_is_not_published_twice(bench: Bench) -> None:
    with Proxy(bench.broker.port) as proxy:
        app = Celery(broker=f"cloche+redis://127.0.0.1:{proxy.port}/0", set_as_current=False)

        @app.task(name="demo.cut", shared=False)
        def cut(x: int) -> None:
            raise AssertionError("only published")

        items = iter(range(3000))

        def cutting() -> Iterator[int]:
            for number in items:
                if number in (1500, 2500):
                    proxy.cut()
                yield number

        assert bulk.map_delay(cut, cutting()).ok
        app.close()
    assert [one["body"][0][0] for one in messages(bench)] == list(range(3000))


@pytest.mark.parametrize("overheard", [False, True], ids=["from a template", "by Celery"])
def test_what_a_reconnecting_producer_publishes_is_what_is_reported(
    bench: Bench, task: Any, overheard: bool
) -> None:
    def kill() -> None:
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])

    def items() -> Iterator[int]:
        for number in range(400):
            if number in (0, 100, 150, 300):
                kill()
            yield number

    def listen(**_: Any) -> None:
        pass

    task.delay(-1)  # a producer is in the pool, and connected
    bench.client.delete("celery")
    if overheard:
        signals.before_task_publish.connect(listen)
    try:
        published = bulk.map_delay(task, items())
    finally:
        signals.before_task_publish.disconnect(listen)
    assert published.ok
    sent = messages(bench)
    assert [one["body"][0][0] for one in sent] == list(range(400))
    assert [one["headers"]["id"] for one in sent] == published.ids


def test_a_cut_while_a_template_is_made_leaves_nothing_of_the_sample(
    bench: Bench, task: Any
) -> None:
    bench.app.conf.task_send_sent_event = True
    for number in range(5):
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])
        task.__dict__.pop("_cloche_quick", None)
        task.delay(number)
    assert [one["body"][0][0] for one in messages(bench)] == list(range(5))
    assert not [one for one in messages(bench) if "@" in one["headers"]["id"]]
    with bench.app.producer_or_acquire() as producer:
        channel = producer.channel
        assert channel.connection.client is producer.connection


def test_tasks_that_are_run_at_once_are_reported(bench: Bench) -> None:
    ran: list[int] = []

    @bench.app.task(name="demo.eager", shared=False)
    def eager(number: int) -> None:
        ran.append(number)

    bench.app.conf.task_always_eager = True
    published = bulk.map_delay(eager, range(3))
    assert ran == [0, 1, 2]
    assert len(set(published.ids)) == 3
    assert published.ok


def test_wrong_arguments_are_refused_where_celery_refuses_them(task: Any) -> None:
    with pytest.raises(TypeError):
        bulk.starmap_delay(task, [(1, 2, 3, 4)])


PRODUCER = """
import os, sys
from celery import Celery
app = Celery(broker=os.environ["URL"])
app.conf.broker_transport_options = {
    "publish_on_outage": "spool", "spool_directory": os.environ["SPOOL"],
}
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    app.send_task("demo.spooled", [number], countdown=60 if number == 3 else None)
"""


def produce(url: str, spool: Path, first: int, end: int) -> None:
    environment = {**os.environ, "URL": url, "SPOOL": str(spool)}
    command = [sys.executable, "-c", PRODUCER, str(first), str(end)]
    subprocess.run(command, env=environment, check=True, timeout=60)


def test_a_publisher_spools_while_the_broker_is_away_and_another_replays(tmp_path: Path) -> None:
    with BrokerProcess(persistent=True) as broker:
        url = f"cloche+redis://127.0.0.1:{broker.port}/0"
        produce(url, tmp_path, 0, 2)
        broker.kill()
        produce(url, tmp_path, 2, 6)  # a new process that never reached the broker
        (spool,) = tmp_path.glob("*.spool")
        assert len(spool.read_bytes().splitlines()) == 4
        broker.start()
        produce(url, tmp_path, 6, 8)
        assert spool.read_bytes() == b""
        client = broker.client()
        found = [json.loads(raw) for raw in reversed(client.lrange("celery", 0, -1))]
        bodies = [json.loads(base64.b64decode(one["body"]))[0][0] for one in found]
        assert bodies == [0, 1, 2, 4, 5, 6, 7]
        assert client.zcard("cloche:delayed:celery") == 1
        client.close()


def test_a_live_publisher_replays_by_itself(tmp_path: Path) -> None:
    with BrokerProcess(persistent=True) as broker:
        app = Celery(broker=f"cloche+redis://127.0.0.1:{broker.port}/0", set_as_current=False)
        app.conf.broker_transport_options = {
            "publish_on_outage": "spool",
            "spool_directory": str(tmp_path),
        }
        app.send_task("demo.spooled", [0])
        broker.kill()
        started = time.monotonic()
        for number in range(1, 20):
            app.send_task("demo.spooled", [number])
        assert time.monotonic() - started < 20
        broker.start()
        client = broker.client()
        wait_until(lambda: client.llen("celery") == 20, "replayed", 10)
        client.close()
        app.close()


def test_without_spool_a_publisher_is_told(tmp_path: Path) -> None:
    with BrokerProcess() as broker:
        app = Celery(broker=f"cloche+redis://127.0.0.1:{broker.port}/0", set_as_current=False)
        app.send_task("demo.told", [0])
        broker.kill()
        with pytest.raises(kombu.exceptions.OperationalError):
            app.send_task("demo.told", [1], retry=False)
        app.close()
