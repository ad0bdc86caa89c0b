"""Coroutine tasks called synchronously: what is raised in the caller reaches the coroutine."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pytest
from celery import Celery, current_task
from celery.exceptions import SoftTimeLimitExceeded, WorkerShutdown

from cloche.aio.loop import LoopThread
from cloche.aio.task import async_task

DEADLINE = 20.0
colour: ContextVar[str] = ContextVar("colour", default="none")


@pytest.fixture
def raise_here() -> Iterator[Callable[[BaseException], None]]:
    """Raise an exception in the main thread as a worker's signal handlers do."""
    wanted: list[BaseException] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        raise wanted.pop()

    def raise_(error: BaseException) -> None:
        wanted.append(error)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    yield raise_
    signal.signal(signal.SIGUSR1, before)


def test_a_soft_limit_is_raised_in_the_body_and_its_clean_up_awaited(
    app: Celery, raise_here: Callable[[BaseException], None]
) -> None:
    @async_task(app=app, name="slow")
    async def slow() -> str:
        asyncio.get_running_loop().call_later(0.02, raise_here, SoftTimeLimitExceeded(1))
        try:
            await asyncio.sleep(DEADLINE)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0.01)
            return "tidied up"
        return "never told"

    assert slow.apply().get() == "tidied up"


@pytest.mark.parametrize("error", [SystemExit(3), WorkerShutdown(0), KeyboardInterrupt()])
def test_an_exit_passes_through_the_body_and_its_clean_up_is_awaited(
    app: Celery, raise_here: Callable[[BaseException], None], error: BaseException
) -> None:
    seen: list[str] = []

    @async_task(app=app, name="leaving")
    async def leaving() -> None:
        asyncio.get_running_loop().call_later(0.02, raise_here, error)
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            await asyncio.sleep(0.01)
            seen.append("tidied up")

    with pytest.raises(type(error)):
        leaving.apply()
    assert seen == ["tidied up"]


def test_an_exit_that_comes_when_the_body_has_ended_still_is_one(
    app: Celery, raise_here: Callable[[BaseException], None]
) -> None:
    @async_task(app=app, name="blocking")
    async def blocking() -> str:
        raise_here(SystemExit(3))
        time.sleep(0.1)  # noqa: ASYNC251 (the body ends before anything can be raised in it)
        return "done"

    with pytest.raises(SystemExit):
        blocking.apply()


def test_interruptions_at_any_moment_neither_hang_nor_get_lost(
    app: Celery,
    raise_here: Callable[[BaseException], None],
    request: pytest.FixtureRequest,
) -> None:
    """The signal hits all parts of starting, waiting and ending."""

    @async_task(app=app, name="short")
    async def short() -> int:
        await asyncio.sleep(0)
        return 1

    short.run()
    # Python drops what is raised in a destructor, and other tests left some to collect.
    gc.collect()
    gc.disable()
    request.addfinalizer(gc.enable)
    for number in range(300):
        timer = threading.Timer(number * 5e-6, raise_here, [SystemExit(number)])
        with pytest.raises(SystemExit):  # noqa: PT012 (it may come at any of these lines)
            timer.start()
            while True:
                short.run()
        timer.join()


def test_sys_exit_in_a_child_task_does_not_stop_the_loop(app: Celery) -> None:
    @async_task(app=app, name="parent")
    async def parent() -> str:
        async def child() -> None:
            raise SystemExit(1)

        try:
            await asyncio.create_task(child())
        except SystemExit:
            return "survived"
        return "not told"

    loop = LoopThread.of_process()
    assert parent.apply().get() == "survived"
    assert LoopThread.of_process() is loop
    assert parent.apply().get() == "survived"


def test_context_variables_of_the_caller_are_seen_in_the_body(app: Celery) -> None:
    @async_task(app=app, name="coloured")
    async def coloured() -> list[str]:
        return [colour.get(), await asyncio.to_thread(colour.get)]

    token = colour.set("blue")
    assert coloured.apply().get() == ["blue", "blue"]
    colour.reset(token)


def test_each_of_many_runs_sees_its_own_request_everywhere(app: Celery) -> None:
    @async_task(app=app, name="many", bind=True)
    async def many(self: Any) -> set[tuple[str, str]]:
        def here() -> tuple[str, str]:
            return self.request.id, current_task.request.id

        async def child() -> tuple[str, str]:
            await asyncio.sleep(0.001)
            return here()

        seen = {here()}
        await asyncio.sleep(0.001)
        seen |= {here(), await asyncio.create_task(child()), await asyncio.to_thread(here)}
        return seen

    wrong: list[Any] = []

    def run(thread: int) -> None:
        for number in range(25):
            name = f"{thread}-{number}"
            if many.apply(task_id=name).get() != {(name, name)}:
                wrong.append(name)

    threads = [threading.Thread(target=run, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_child_task_left_behind_sees_no_other_request(app: Celery) -> None:
    left: list[asyncio.Task[Any]] = []

    @async_task(app=app, name="leaver", bind=True)
    async def leaver(self: Any) -> None:
        async def later() -> Any:
            await asyncio.sleep(0.05)
            return self.request.id

        left.append(asyncio.create_task(later()))

    @async_task(app=app, name="waiter")
    async def waiter() -> Any:
        return await left[0]

    leaver.apply(task_id="gone")
    assert waiter.apply().get() is None


def test_a_task_called_inside_a_coroutine_of_the_same_loop_does_not_deadlock(app: Celery) -> None:
    @async_task(app=app, name="depth", bind=True)
    async def depth(self: Any, wanted: int) -> list[str]:
        await asyncio.sleep(0)
        inner = depth.delay(wanted - 1).get(disable_sync_subtasks=False) if wanted else []
        await asyncio.sleep(0)
        return [*inner, f"{self.request.id}/{current_task.request.id}"]

    ids = depth.apply([5]).get()
    assert len(ids) == 6
    assert all(own == current for own, _, current in (name.partition("/") for name in ids))
    assert len(set(ids)) == 6


def test_a_limit_passes_through_tasks_called_inside(
    app: Celery, raise_here: Callable[[BaseException], None]
) -> None:
    seen = []

    @async_task(app=app, name="inner")
    async def inner() -> None:
        asyncio.get_running_loop().call_later(0.02, raise_here, SystemExit(1))
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            await asyncio.sleep(0.01)
            seen.append("inner")

    @async_task(app=app, name="outer")
    async def outer() -> None:
        try:
            inner.apply()
        finally:
            await asyncio.sleep(0.01)
            seen.append("outer")

    with pytest.raises(SystemExit):
        outer.apply()
    assert seen == ["inner", "outer"]


def test_a_task_called_on_another_loop_runs_on_the_process_loop(app: Celery) -> None:
    @async_task(app=app, name="where")
    async def where() -> int:
        return id(asyncio.get_running_loop())

    async def elsewhere() -> tuple[int, int, int]:
        blocking = where.apply().get()
        awaited = await (await where.adelay()).aget()
        return blocking, awaited, id(asyncio.get_running_loop())

    blocking, awaited, other = asyncio.run(elsewhere())
    assert blocking == awaited == id(LoopThread.of_process().loop) != other


def test_a_forked_child_has_a_loop_of_its_own(app: Celery) -> None:
    @async_task(app=app, name="where")
    async def where() -> int:
        await asyncio.sleep(0)
        return os.getpid()

    assert where.apply().get() == os.getpid()
    child = os.fork()
    if child == 0:
        os._exit(0 if where.apply().get() == os.getpid() else 1)
    deadline = time.monotonic() + DEADLINE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
