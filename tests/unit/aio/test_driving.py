"""A coroutine driven by hand: exceptions thrown into it, its clean-up awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from cloche.aio.driving import Drive


async def _thrown_into(body: Coroutine[Any, Any, Any], exc: BaseException) -> Any:
    """The outcome of ``body`` with ``exc`` thrown in once it waits."""
    drive = Drive(body)
    task = asyncio.create_task(drive.run())
    await asyncio.sleep(0)
    assert drive.throw(exc)
    return await task


def test_what_a_body_returns_is_returned() -> None:
    async def body() -> int:
        await asyncio.sleep(0)
        return 3

    async def main() -> None:
        drive = Drive(body())
        assert await drive == 3
        assert drive.done
        assert not drive.throw(ValueError())

    asyncio.run(main())


def test_a_thrown_exception_is_raised_at_the_await_and_the_body_may_still_return() -> None:
    async def body() -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0.01)
            return "tidied up"
        return "slept"

    assert asyncio.run(_thrown_into(body(), SoftTimeLimitExceeded(1))) == "tidied up"


def test_what_was_thrown_in_comes_out_as_it_was() -> None:
    limit = SoftTimeLimitExceeded(1)

    async def body() -> None:
        await asyncio.sleep(60)

    with pytest.raises(SoftTimeLimitExceeded) as caught:
        asyncio.run(_thrown_into(body(), limit))
    assert caught.value is limit
    assert type(caught.value) is SoftTimeLimitExceeded


def test_a_task_group_in_the_body_ends_its_children_first() -> None:
    ended: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("child")

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())
        finally:
            ended.append("body")

    async def main() -> None:
        drive = Drive(body())
        task = asyncio.create_task(drive.run())
        await asyncio.sleep(0.01)
        drive.throw(SoftTimeLimitExceeded(1))
        with pytest.raises(SoftTimeLimitExceeded):
            await task

    asyncio.run(main())
    assert ended == ["child", "child", "body"]


def test_a_deadline_of_the_body_still_counts_its_own_cancellations() -> None:
    async def body() -> str:
        try:
            async with asyncio.timeout(60):
                await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)
            return "both"
        return "none"

    assert asyncio.run(_thrown_into(body(), SoftTimeLimitExceeded(1))) == "both"


def test_a_body_that_throws_into_itself_sees_it_at_its_next_await() -> None:
    drives: list[Drive] = []

    async def body() -> str:
        drives[0].throw(KeyError("own"))
        try:
            await asyncio.sleep(0)
        except KeyError:
            return "seen"
        return "unseen"

    async def main() -> str:
        drives.append(Drive(body()))
        outcome: str = await drives[0]
        await asyncio.sleep(0)  # the task around it is not cancelled
        return outcome

    assert asyncio.run(main()) == "seen"


def test_a_body_that_had_not_begun_never_does() -> None:
    begun = []

    async def body() -> None:
        begun.append(1)

    async def main() -> None:
        drive = Drive(body())
        drive.throw(KeyError("early"))
        await drive

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert not begun


def test_cancelling_and_a_stray_cancellation_are_told_apart() -> None:
    async def stray() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def patient() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        drive = Drive(stray())
        with pytest.raises(asyncio.CancelledError):
            await drive
        assert not drive.cancelled

        drive = Drive(patient())
        task = asyncio.create_task(drive.run())
        await asyncio.sleep(0)
        drive.throw(asyncio.CancelledError("revoked"))
        with pytest.raises(asyncio.CancelledError, match="revoked"):
            await task
        assert drive.cancelled

    asyncio.run(main())


def test_another_thread_can_throw() -> None:
    async def body() -> str:
        try:
            await asyncio.sleep(60)
        except KeyError as error:
            return str(error)
        return "slept"

    async def main() -> str:
        drive = Drive(body())
        loop = asyncio.get_running_loop()
        thread = threading.Timer(0.05, drive.throw_soon, (loop, KeyError("there")))
        thread.start()
        outcome: str = await drive
        thread.join()
        return outcome

    assert asyncio.run(main()) == "'there'"
