"""Fetching ahead of the prefetch limit, results stored behind the threads' backs, and events."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord, signals
from celery.result import AsyncResult

from cloche.app.task import Task
from cloche.broker.connection.commands import send
from cloche.broker.publish.bulk import map_delay
from cloche.broker.results.deferred import unwatched
from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport.harness import APP, Bench, Worker

#: As the ledger application, but with results; the worker takes one task for each thread.
CONF = {
    "task_ignore_result": False,
    "task_track_started": False,
    "worker_prefetch_multiplier": 1,
}


class ClocheWorker(Worker):
    """``cloche worker -P threads`` on the ledger application."""

    ready = "is ready"

    def __init__(self, bench: Bench, concurrency: int, conf: dict[str, Any]) -> None:
        self.where = bench.directory
        conf = {"broker_transport_options": bench.options, **conf}
        super().__init__(bench, "threads", concurrency, bench.url, conf, {})
        bench.workers.append(self)

    def _words(self, pool: str, concurrency: int, name: str) -> list[str]:
        words = ["-m", "cloche", "worker", "-A", APP, "-P", pool, "-c", str(concurrency)]
        return [*words, "-Q", "celery", "--set", f"run_dir={self.where}"]


def cloche_worker(bench: Bench, concurrency: int = 1, **conf: Any) -> ClocheWorker:
    worker = ClocheWorker(bench, concurrency, {**CONF, "result_backend": bench.url, **conf})
    worker.wait_ready()
    return worker


@pytest.fixture
def results() -> Iterator[BrokerProcess]:
    """A server for results alone."""
    with BrokerProcess() as server:
        yield server


def calls(bench: Bench, command: str) -> int:
    found: Any = bench.client.info("commandstats")
    return int(found.get(f"cmdstat_{command}", {}).get("calls", 0))


def record(bench: Bench) -> Any:
    """The ledger application's task, as a producer sees it."""

    @bench.app.task(name=f"{APP}.record", shared=False, ignore_result=False)
    def record(number: int, seconds: float = 0.0) -> None:
        raise AssertionError("runs in the worker")

    return bench.app.tasks[f"{APP}.record"]


def test_short_tasks_are_fetched_many_at_a_time_whatever_the_prefetch_limit(bench: Bench) -> None:
    task, ran = record(bench), 0

    def many_at_a_time() -> bool:
        nonlocal ran
        before = calls(bench, "hset")  # one for each fetch that brings something
        assert map_delay(task, range(ran, ran + 600)).ok
        if not ran:
            bench.worker("threads", 2, conf=CONF | {"task_ignore_result": True})
        ran += 600
        wait_until(lambda: bench.done(ran), "all ran")
        return calls(bench, "hset") - before < 200

    # On a machine that is busy elsewhere these are no short tasks, and few are fetched at a time.
    wait_until(many_at_a_time, "600 tasks came with less than 200 fetches", 90)
    assert set(bench.ledger.count("start").values()) == {1}


def test_what_was_fetched_ahead_of_a_long_task_goes_back_unmarked(bench: Bench) -> None:
    for number in range(300):
        bench.send(number)
    for number in range(300, 320):
        bench.send(number, seconds=60)
    bench.worker("threads", 1, conf=CONF | {"task_ignore_result": True})
    wait_until(lambda: 300 in bench.ledger.count("start"), "the first long task runs")
    wait_until(lambda: bench.client.llen("celery") == 19, "the others are back")
    assert bench.inflight() == 1
    waiting = [json.loads(raw) for raw in bench.client.lrange("celery", 0, -1)]
    assert not any("redelivered" in one["headers"] for one in waiting)
    ids = [json.loads(one["headers"]["argsrepr"].strip("[]")) for one in reversed(waiting)]
    assert ids == list(range(301, 320))  # in order, oldest first


def test_a_thread_goes_on_while_a_result_waits_and_the_message_is_held_until_it_is_stored(
    bench: Bench, results: BrokerProcess
) -> None:
    url = f"cloche+redis://127.0.0.1:{results.port}/0"
    cloche_worker(bench, 1, result_backend=url)
    store = results.client()
    sent = [bench.app.send_task(f"{APP}.record", [0])]
    wait_until(lambda: store.exists(f"celery-task-meta-{sent[0].id}"), "the first is stored")
    wait_until(lambda: bench.inflight() == 0, "the first is settled")
    send(store, "CLIENT", "PAUSE", 3000, "WRITE")
    sent += [bench.app.send_task(f"{APP}.record", [number]) for number in (1, 2)]
    wait_until(lambda: bench.done(3), "the thread went on to the third")
    assert bench.inflight() == 2  # run, and not acknowledged
    assert not store.exists(f"celery-task-meta-{sent[1].id}")
    wait_until(lambda: bench.inflight() == 0, "all are settled")
    for one in sent:
        assert json.loads(store.get(f"celery-task-meta-{one.id}") or "{}")["status"] == "SUCCESS"
    store.close()


def test_a_stopping_worker_stores_and_settles_all_that_ran(bench: Bench) -> None:
    worker = cloche_worker(bench, 4)
    sent = map_delay(record(bench), range(3000)).ids
    wait_until(lambda: bench.done(200), "some ran")
    assert worker.stop() == 0
    ran = bench.ledger.count("end")
    left = {json.loads(one["headers"]["argsrepr"].strip("(),")) for one in queued(bench)}
    assert not left & set(ran)
    assert left | set(ran) == set(range(3000))
    for number in ran:
        assert bench.client.exists(f"celery-task-meta-{sent[number]}"), number


def queued(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(raw) for raw in bench.client.lrange("celery", 0, -1)]


def test_a_chord_and_a_failure_end_as_everywhere(bench: Bench) -> None:
    app = Celery(broker=bench.url, backend=bench.url, set_as_current=False)
    cloche_worker(bench, 4)
    parts = [app.signature(f"{APP}.add", (n, n)) for n in range(20)]
    body = app.signature(f"{APP}.total")
    assert chord(parts, body=body, app=app).apply_async().get(timeout=30) == 380
    failing = app.send_task(f"{APP}.add", [1, "a"])
    with pytest.raises(TypeError):
        failing.get(timeout=30)
    app.close()


def test_results_with_somebody_watching_are_stored_before_the_thread_goes_on() -> None:
    app = Celery(set_as_current=False)

    @app.task(name="demo.plain", shared=False)
    def plain() -> None: ...

    class Watching(Task):
        abstract = True

        def on_success(self, *args: Any) -> None: ...

    @app.task(name="demo.watching", base=Watching, shared=False)
    def watching() -> None: ...

    assert unwatched(app.tasks["demo.plain"])
    assert not unwatched(app.tasks["demo.watching"])

    def listen(**_: Any) -> None: ...

    for signal in (signals.task_success, signals.task_postrun):
        signal.connect(listen)
        try:
            assert not unwatched(app.tasks["demo.plain"])
        finally:
            signal.disconnect(listen)


def test_events_of_a_busy_worker_come_many_in_a_message_and_in_order(bench: Bench) -> None:
    seen: dict[str, list[tuple[str, int]]] = {}
    published = 0
    with bench.client.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
        heard.psubscribe("*celeryev*")
        cloche_worker(bench, 4, worker_send_task_events=True)
        sent = map_delay(record(bench), range(400)).ids

        def all_came() -> bool:
            nonlocal published
            found = heard.get_message(timeout=0.2)
            if found is not None and found["channel"].endswith("task.multi"):
                published += 1
                body = base64.b64decode(json.loads(found["data"])["body"])
                for event in json.loads(body):
                    seen.setdefault(event["uuid"], []).append((event["type"], event["clock"]))
            return sum(map(len, seen.values())) >= 1200

        wait_until(all_came, "all events")
    expected = ["task-received", "task-started", "task-succeeded"]
    assert all([kind for kind, _ in seen[one]] == expected for one in sent)
    assert all(sorted(of_task, key=lambda e: e[1]) == of_task for of_task in seen.values())
    assert published < 200


def test_celerys_result_reader_sees_deferred_results(bench: Bench) -> None:
    app = Celery(
        broker=bench.url, backend=f"redis://127.0.0.1:{bench.broker.port}/0", set_as_current=False
    )
    cloche_worker(bench, 2)
    found: AsyncResult[int] = app.send_task(f"{APP}.add", [20, 22])
    assert found.get(timeout=20) == 42
    app.close()


def test_a_worker_does_not_read_the_heartbeats_of_others(bench: Bench) -> None:
    cloche_worker(bench, 1, worker_send_task_events=True)
    assert send(bench.client, "PUBLISH", "/0.celeryev/worker.heartbeat", "{}") == 0
