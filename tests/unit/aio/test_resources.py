"""Resources: one per loop, opened on first use, closed with the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextvars import ContextVar

import httpx2
import pytest
from celery import Celery, signals

from cloche.aio.loop import LoopThread
from cloche.aio.resources import close_resources, resource
from cloche.aio.task import async_task
from cloche.errors import CoroutineTaskError

user: ContextVar[str] = ContextVar("user", default="nobody")


class Connection:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()
        self.user = user.get()
        self.closed = False

    async def aclose(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.closed = True


def test_all_tasks_of_a_process_share_one_and_a_worker_closes_it(app: Celery) -> None:
    opened: list[Connection] = []

    @resource
    async def connection() -> AsyncIterator[Connection]:
        opened.append(Connection())
        await asyncio.sleep(0.01)
        yield opened[-1]
        assert asyncio.current_task() is opened[-1].task  # as cancel scopes want it
        await opened[-1].aclose()

    @async_task(app=app, name="use")
    async def use() -> bool:
        user.set("me")
        one, other = await asyncio.gather(connection(), connection())
        return one is other is opened[-1] and one.loop is asyncio.get_running_loop()

    assert [use.apply().get() for _ in range(3)] == [True] * 3
    assert [one.user for one in opened] == ["nobody"]
    signals.worker_shutdown.send(sender=None)
    assert [one.closed for one in opened] == [True]
    assert use.apply().get()
    assert len(opened) == 2
    signals.worker_process_shutdown.send(sender=None)
    assert [one.closed for one in opened] == [True, True]
    assert LoopThread.running() is None


def test_the_newest_is_closed_first_and_an_error_keeps_none_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed: list[str] = []

    @resource
    async def first() -> AsyncIterator[int]:
        yield 1
        closed.append("first")

    @resource
    async def second() -> AsyncIterator[int]:
        yield 1 + await first()
        closed.append("second")
        raise OSError("it does not close")

    async def use() -> int:
        value = await second()
        await close_resources()
        return value

    assert asyncio.run(use()) == 2
    assert closed == ["second", "first"]
    assert "closing the resource" in caplog.text


def test_one_that_cannot_be_opened_is_tried_again_at_the_next_use() -> None:
    tries = []

    @resource
    async def flaky() -> AsyncIterator[int]:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not yet")
        yield len(tries)

    async def use() -> int:
        with pytest.raises(OSError, match="not yet"):
            await flaky()
        value = await flaky()
        await close_resources()
        return value

    assert asyncio.run(use()) == 2


def test_a_user_who_is_cancelled_while_it_opens_does_not_take_it_from_others() -> None:
    @resource
    async def slow() -> AsyncIterator[int]:
        await asyncio.sleep(0.02)
        yield 1

    async def use() -> int:
        impatient = asyncio.create_task(slow())
        patient = asyncio.create_task(slow())
        await asyncio.sleep(0)
        impatient.cancel()
        value = await patient
        await close_resources()
        return value

    assert asyncio.run(use()) == 1


def test_clients_and_coroutine_functions_open_resources_too() -> None:
    http = resource(httpx2.AsyncClient)

    @resource
    async def connection() -> Connection:
        return Connection()

    async def use() -> tuple[httpx2.AsyncClient, Connection]:
        both = await http(), await connection()
        assert not both[0].is_closed
        await close_resources()
        return both

    client, other = asyncio.run(use())
    assert client.is_closed
    assert other.closed


def test_what_opens_nothing_is_refused_where_it_is_written() -> None:
    with pytest.raises(CoroutineTaskError, match="does not open a resource"):

        @resource  # type: ignore[arg-type]
        def connection() -> object:
            yield 1


def test_a_process_that_ends_closes_what_its_eager_tasks_opened() -> None:
    program = """
import asyncio, contextlib
from celery import Celery
from cloche.aio.resources import resource
from cloche.aio.task import async_task

@resource
@contextlib.asynccontextmanager
async def connection():
    try:
        yield 1
    finally:
        await asyncio.sleep(0.01)
        print("closed")

@async_task(app=Celery("ends", broker="memory://"))
async def use():
    return await connection()

print(use.apply().get())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("1\nclosed\n", "")
