"""The result backend against a real server, read by stock clients and by coroutines."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator

import pytest
from celery import Celery, chord, group, states

from cloche.broker import results, results_waiting
from cloche.testing import BrokerProcess
from tests.integration.transport.harness import Bench, wait_until


@pytest.fixture
def app(broker: BrokerProcess) -> Iterator[Celery]:
    url = f"cloche+redis://127.0.0.1:{broker.port}/0"
    found = Celery(broker=url, backend=url, set_as_current=False)
    found.conf.result_expires = 3600
    client = broker.client()
    client.flushall()
    yield found
    gc.collect()  # a result that is collected later would unsubscribe at a server that is gone
    client.close()
    found.close()


@pytest.fixture
def stock(broker: BrokerProcess) -> Iterator[Celery]:
    url = f"redis://127.0.0.1:{broker.port}/0"
    found = Celery(broker=url, backend=url, set_as_current=False)
    yield found
    gc.collect()
    found.close()


def test_a_stock_client_reads_and_waits_for_our_results(app: Celery, stock: Celery) -> None:
    threading.Timer(0.3, app.backend.store_result, ("id-1", {"a": 1}, states.SUCCESS)).start()
    assert stock.AsyncResult("id-1").get(timeout=5) == {"a": 1}
    app.backend.store_result("id-2", ValueError("no"), states.FAILURE)
    with pytest.raises(ValueError, match="no"):
        stock.AsyncResult("id-2").get(timeout=5)


def test_results_expire(app: Celery, broker: BrokerProcess) -> None:
    app.backend.store_result("id", 1, states.SUCCESS)
    client = broker.client()
    assert 3500 < client.ttl("celery-task-meta-id") <= 3600
    client.close()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_success_is_never_overwritten_and_other_states_are(app: Celery, serializer: str) -> None:
    app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
    backend = app.backend
    for state in (states.STARTED, states.RETRY, states.FAILURE, states.SUCCESS):
        value: object = ValueError("no") if state in states.EXCEPTION_STATES else 7
        backend.store_result("id", value, state)
        assert backend._get_task_meta_for("id")["status"] == state
    for late in (states.FAILURE, states.REVOKED, states.STARTED):
        value = ValueError("late") if late in states.EXCEPTION_STATES else "late"
        backend.store_result("id", value, late)
        assert backend._get_task_meta_for("id")["status"] == states.SUCCESS


def test_results_of_threads_share_round_trips_and_none_is_lost(app: Celery) -> None:
    backend = app.backend
    threads = [
        threading.Thread(
            target=lambda first=first: [
                backend.store_result(f"t{n}", n, states.SUCCESS) for n in range(first, first + 50)
            ]
        )
        for first in range(0, 500, 50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [backend._get_task_meta_for(f"t{n}")["result"] for n in range(500)] == list(range(500))


def test_sending_a_task_need_not_subscribe_but_waiting_does(
    app: Celery, broker: BrokerProcess
) -> None:
    app.conf.result_backend_transport_options = {"subscribe_on_call": False}
    client = broker.client()
    sent = app.send_task("nobody", task_id="waited-for")
    assert client.pubsub_channels() == []
    waiting = threading.Thread(target=lambda: sent.get(timeout=10))
    waiting.start()
    wait_until(lambda: client.pubsub_channels() != [], "somebody waits")
    app.backend.store_result("waited-for", 3, states.SUCCESS)
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    client.close()


def test_coroutines_wait_for_results_without_a_connection_each(
    app: Celery, broker: BrokerProcess
) -> None:
    client = broker.client()
    count = 300

    async def scene() -> tuple[list[object], int]:
        waiting = [
            asyncio.create_task(results.aget(app.AsyncResult(f"a{n}"), timeout=20))
            for n in range(count)
        ]
        await asyncio.sleep(0.3)
        connections = len(client.client_list())
        for n in range(count):
            await asyncio.to_thread(app.backend.store_result, f"a{n}", n, states.SUCCESS)
        values = await asyncio.gather(*waiting)
        await results_waiting.close(app.backend)
        return values, connections

    values, connections = asyncio.run(scene())
    assert values == list(range(count))
    assert connections < 20
    wait_until(lambda: client.pubsub_channels() == [], "nobody is subscribed any more")
    client.close()


def test_aget_raises_what_the_task_raised_and_timeouts(app: Celery) -> None:
    async def scene() -> None:
        app.backend.store_result("bad", KeyError("x"), states.FAILURE)
        with pytest.raises(KeyError):
            await app.backend.aget("bad", timeout=5)
        error = await app.backend.aget("bad", timeout=5, propagate=False)
        assert isinstance(error, KeyError)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await app.backend.aget("never", timeout=0.3)
        assert time.monotonic() - started < 3
        await results_waiting.close(app.backend)

    asyncio.run(scene())


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_chains_groups_and_chords_work(bench: Bench, pool: str) -> None:
    bench.worker(pool, 4, conf={"result_backend": bench.url, "task_ignore_result": False})
    app = Celery(broker=bench.url, backend=bench.url, set_as_current=False)
    add = app.signature("tests.integration.transport.ledger_app.add")
    total = app.signature("tests.integration.transport.ledger_app.total")
    try:
        chain = add.clone((1, 2)) | add.clone((10,)) | add.clone((100,))
        assert chain.apply_async().get(timeout=20) == 113
        many = group([add.clone((n, n)) for n in range(20)], app=app)
        assert many.apply_async().get(timeout=20) == [2 * n for n in range(20)]
        whole = chord([add.clone((n, 1)) for n in range(10)], total, app=app)
        assert whole.apply_async().get(timeout=20) == sum(range(1, 11))
    finally:
        app.close()
