"""The result backend against a real server, read by stock clients and by coroutines."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import redis
from celery import Celery, chord, group, states
from celery.exceptions import TimeoutError as CeleryTimeoutError

from cloche.broker.results import redis_backend as results
from cloche.broker.results import waiter as results_waiting
from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport.harness import Bench, connections
from tests.integration.transport.proxy import Proxy


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


def test_threads_and_loops_that_end_take_their_connections_along(
    app: Celery, broker: BrokerProcess
) -> None:
    client = broker.client()

    def sent() -> Any:
        result = app.send_task("nobody")
        value = f'{{"status": "SUCCESS", "result": 1, "task_id": "{result.id}"}}'
        client.set(f"celery-task-meta-{result.id}", value)
        return result

    async def in_a_loop() -> object:
        return await results.aget(sent(), timeout=10)

    def ended(function: Callable[[], object]) -> int:
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()
        return len(client.client_list())

    gc.disable()  # it closes what was left behind, some time
    try:
        in_threads = [ended(lambda: sent().get(timeout=10)) for _ in range(20)]
        in_loops = [ended(lambda: asyncio.run(in_a_loop())) for _ in range(20)]
        asyncio.run(in_a_loop())
        here = [asyncio.run(in_a_loop()) for _ in range(20)]
    finally:
        gc.enable()
    assert max(in_threads + in_loops) - in_threads[0] <= 2
    assert here == [1] * 20
    assert len(client.client_list()) - in_threads[0] <= 4
    client.close()


def test_a_waiter_whose_connection_is_cut_leaves_none_behind(
    app: Celery, broker: BrokerProcess
) -> None:
    client = broker.client()
    result = app.send_task("nobody")
    gc.disable()  # it closes what was left behind, some time
    try:
        open_ones = []
        for _ in range(8):
            with pytest.raises(CeleryTimeoutError):
                result.get(timeout=0.2)
            client.client_kill_filter(_type="pubsub")
            open_ones.append(app_sockets(broker.port))
    finally:
        gc.enable()
    assert max(open_ones) - open_ones[0] <= 1, open_ones
    client.close()


def app_sockets(port: int) -> int:
    """How many sockets this process has to the port, closed by the other side or not."""
    links = psutil.Process().net_connections("tcp")
    return sum(bool(link.raddr) and link.raddr.port == port for link in links)


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


def part(group_id: str, number: int, body: Any) -> Any:
    """The request of a chord's header task, as far as the backend reads it."""
    return SimpleNamespace(
        id=f"{group_id}-{number}", group=group_id, group_index=number, chord=body
    )


@pytest.mark.parametrize("of_groups", [False, True], ids=["simple header", "header of groups"])
def test_cut_replies_cost_a_chord_neither_its_body_nor_send_it_twice(
    app: Celery, broker: BrokerProcess, caplog: pytest.LogCaptureFixture, of_groups: bool
) -> None:
    """What completes a chord is carried out, but its reply cut: each command alone, then every
    other one."""
    client = broker.client()
    seen = 0
    cuts: frozenset[int] = frozenset()

    def asked(data: bytes) -> bool:
        nonlocal seen
        if b"celery-taskset-meta-" not in data and b"celery-task-meta-" not in data:
            return False  # a connection's greeting
        seen += 1
        return seen in cuts

    def complete(group_id: str) -> None:
        nonlocal seen
        client.flushall()
        seen = 0
        backend.set_chord_size(group_id, 1)
        backend.add_to_chord(group_id, None)
        if of_groups:
            parts = [through.AsyncResult(f"{group_id}-{n}") for n in range(2)]
            inner = through.GroupResult("inner", parts[1:])
            backend.apply_chord((group_id, [parts[0], inner]), body)
        for number in range(2):
            backend.store_result(f"{group_id}-{number}", number, states.SUCCESS)
            request = part(group_id, number, body)
            backend.on_chord_part_return(request, states.SUCCESS, number)
        assert client.llen("celery") == 1, group_id
        assert client.get(f"celery-taskset-meta-{group_id}.c") == "done"
        assert client.exists(f"celery-taskset-meta-{group_id}.s") == 0
        # Asked again by a header task that ran twice.
        backend.on_chord_part_return(part(group_id, 1, body), states.SUCCESS, 1)
        assert client.llen("celery") == 1, group_id

    with Proxy(broker.port) as proxy:
        url = f"cloche+redis://127.0.0.1:{proxy.port}/0"
        through = Celery(broker=app.conf.broker_url, backend=url, set_as_current=False)
        through.conf.result_backend_transport_options = {
            "subscribe_on_call": False,
            "retry_policy": {"interval_start": 0, "interval_step": 0.01, "interval_max": 0.01},
        }
        body = through.signature("body")
        backend: Any = through.backend
        proxy.cut_replies(asked)
        complete("uncut")
        for nth in () if of_groups else range(1, seen + 1):  # Celery joins those half a second
            cuts = frozenset({nth})
            complete(f"command-{nth}")
        for odd in (0, 1):
            cuts = frozenset(range(odd, 99, 2))
            complete(f"every-other-{odd}")
        assert seen > 15
        backend.result_consumer.release()  # groups were joined: their results are pending here
        backend.client.connection_pool.disconnect()
        through.close()
    assert not [one for one in caplog.records if "claim" in one.getMessage()]
    client.close()


def test_counting_and_expiring_outlast_cut_connections(app: Celery, broker: BrokerProcess) -> None:
    client = broker.client()
    cuts = 3

    def first(data: bytes) -> bool:
        nonlocal cuts
        cuts -= b"counter" in data
        return b"counter" in data and cuts >= 0

    with Proxy(broker.port) as proxy:
        url = f"cloche+redis://127.0.0.1:{proxy.port}/0"
        through = Celery(backend=url, set_as_current=False)
        through.conf.result_backend_transport_options = {"retry_policy": {"interval_step": 0.01}}
        proxy.cut_replies(first)
        assert through.backend.incr("counter") == 1
        cuts = 2
        assert through.backend.expire("counter", 30)
        cuts = 1
        assert through.backend.incr("counter") == 2
        through.backend.release()
        through.close()
    assert 0 < client.ttl("counter") <= 30
    client.close()


def test_waiting_in_coroutines_outlasts_lost_connections(
    app: Celery, broker: BrokerProcess
) -> None:
    client = broker.client()

    def kill() -> None:
        for one in connections(client):
            client.client_kill_filter(_id=one["id"])

    def subscribed(key: str) -> bool:
        return bool(dict(client.pubsub_numsub(key))[key])

    async def scene() -> None:
        backend = app.backend
        backend.store_result("there", 1, states.SUCCESS)
        assert await backend.aget("there", timeout=10) == 1
        for _ in range(3):
            kill()
            assert await backend.aget("there", timeout=10) == 1
        waiting = [asyncio.create_task(backend.aget("later", timeout=20)) for _ in range(3)]
        never = asyncio.create_task(backend.aget("never", timeout=1.5))
        key = "celery-task-meta-later"
        for _ in range(3):
            await asyncio.to_thread(wait_until, lambda: subscribed(key), "somebody waits")
            kill()
        # Told of while nobody listens: it is looked for.
        client.set(key, '{"status": "SUCCESS", "result": 2, "task_id": "later"}')
        assert await asyncio.gather(*waiting) == [2, 2, 2]
        with pytest.raises(TimeoutError):
            await never
        waiting = [asyncio.create_task(backend.aget("never", timeout=20))]
        key = "celery-task-meta-never"
        await asyncio.to_thread(wait_until, lambda: subscribed(key), "somebody waits")
        kill()
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await results_waiting.close(backend)

    asyncio.run(scene())
    client.close()


def test_waiting_in_coroutines_ends_when_the_server_stays_away() -> None:
    app = Celery(backend="cloche+redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 2}}

    async def scene() -> None:
        with pytest.raises(redis.exceptions.ConnectionError):
            await app.backend.aget("x", timeout=60)
        with pytest.raises(TimeoutError):
            await app.backend.aget("x", timeout=0.05)
        await results_waiting.close(app.backend)

    asyncio.run(scene())
    app.close()
