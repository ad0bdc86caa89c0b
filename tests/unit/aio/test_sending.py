"""Sending and waiting in coroutines: the loop goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from celery import Celery, group, signals

from cloche.aio.results import aget
from cloche.aio.task import AsyncTask, async_task

SLOW = 0.2


@pytest.fixture
def slow_publish() -> Any:
    """Publishing takes a while."""

    def slow(**_: Any) -> None:
        time.sleep(SLOW)

    signals.before_task_publish.connect(slow)
    yield
    signals.before_task_publish.disconnect(slow)


async def _longest_pause(stop: asyncio.Event) -> float:
    longest = 0.0
    while not stop.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - began)
    return longest


def test_adelay_lets_the_loop_go_on_while_it_publishes(app: Celery, slow_publish: None) -> None:
    app.conf.task_always_eager = False

    @async_task(app=app, name="sent")
    async def sent() -> None: ...

    async def send() -> tuple[float, float]:
        stop = asyncio.Event()
        pauses = asyncio.create_task(_longest_pause(stop))
        began = time.perf_counter()
        await asyncio.gather(*(sent.adelay() for _ in range(4)))
        took = time.perf_counter() - began
        stop.set()
        return took, await pauses

    took, pause = asyncio.run(send())
    assert took > SLOW
    assert pause < SLOW


def test_a_slow_delay_on_a_loop_is_warned_of_once_with_its_line(
    app: Celery, slow_publish: None, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.task_always_eager = False

    @async_task(app=app, name="sent")
    async def sent() -> None: ...

    async def send() -> None:
        for _ in range(2):
            sent.delay()

    with caplog.at_level(logging.WARNING):
        sent.delay()  # no loop runs here: nothing to say
        assert "held up" not in caplog.text
        asyncio.run(send())
    (record,) = (record for record in caplog.records if record.name == "cloche.aio.sending")
    line = send.__code__.co_firstlineno + 2
    assert record.getMessage().startswith(f"{__file__}:{line}: sending sent held up")


def test_the_sending_task_is_the_parent_of_the_one_it_sends(app: Celery) -> None:
    parents = []

    def note(headers: dict[str, Any], **_: Any) -> None:
        parents.append((headers["parent_id"], headers["root_id"]))

    @async_task(app=app, name="child")
    async def child() -> None: ...

    @async_task(app=app, name="parent", bind=True)
    async def parent(self: Any) -> list[str]:
        app.conf.task_always_eager = False
        sent = [child.delay(), await child.adelay()]
        return [one.id for one in sent if one in self.request.children]

    signals.before_task_publish.connect(note)
    try:
        children = parent.apply(task_id="root").get()
    finally:
        signals.before_task_publish.disconnect(note)
    assert parents == [("root", "root")] * 2
    assert len(children) == 2


def test_eager_tasks_may_await_each_other_to_any_depth(app: Celery) -> None:
    @async_task(app=app, name="deep")
    async def deep(wanted: int) -> int:
        return 0 if not wanted else 1 + await (await deep.adelay(wanted - 1)).aget()

    assert deep.delay(10).get() == 10


def test_results_of_any_backend_can_be_awaited(app: Celery) -> None:
    @app.task(name="fails", base=AsyncTask, shared=False)
    def fails() -> None:
        raise ValueError("no")

    async def wait() -> list[Any]:
        eager = await fails.adelay()
        app.conf.task_always_eager = False
        app.backend.store_result("sending-one", 1, "SUCCESS")
        app.backend.store_result("sending-two", ValueError("no"), "FAILURE")
        one, two, never = (fails.AsyncResult(f"sending-{name}") for name in ("one", "two", "never"))
        later = asyncio.create_task(fails.AsyncResult("sending-later").aget(timeout=20))
        await asyncio.sleep(0.02)
        app.backend.store_result("sending-later", 3, "SUCCESS")
        with pytest.raises(ValueError, match="no"):
            await two.aget()
        with pytest.raises(TimeoutError):
            await never.aget(timeout=0.05)
        return [
            await eager.aget(propagate=False),
            await aget(one),
            await two.aget(propagate=False),
            await later,
            await aget(app.GroupResult("g", [one, one])),
        ]

    eager, one, two, later, both = asyncio.run(wait())
    assert isinstance(eager, ValueError)
    assert isinstance(two, ValueError)
    assert (one, later, both) == (1, 3, [1, 1])


def test_a_group_of_eager_tasks_can_be_awaited(app: Celery) -> None:
    @async_task(app=app, name="double")
    async def double(x: int) -> int:
        return 2 * x

    results = group(double.s(number) for number in range(3)).apply()
    assert asyncio.run(aget(results)) == [0, 2, 4]
