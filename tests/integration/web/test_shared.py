"""One stream of reads for any number of viewers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from cloche.web.live import Shared, SharedByKey


async def _take(shared: Shared[int], count: int) -> list[int]:
    seen: list[int] = []
    async with aclosing(shared.watch()) as values:
        async for value in values:
            if value is not None:
                seen.append(value)
            if len(seen) == count:
                break
    return seen


def test_a_hundred_viewers_cost_as_many_reads_as_one() -> None:
    reads = 0

    def read() -> int:
        nonlocal reads
        reads += 1
        return reads

    async def scene() -> None:
        shared = Shared(read, lambda _: 0.02)
        seen = await asyncio.gather(*(_take(shared, 5) for _ in range(100)))
        assert all(values[-1] - values[0] >= 4 for values in seen)
        assert reads <= 10
        assert shared.viewers == 0
        before = reads
        await asyncio.sleep(0.1)
        assert reads <= before + 1, "it goes on reading without viewers"

    asyncio.run(scene())


def test_only_changes_are_told_and_silence_is_kept_alive() -> None:
    async def scene() -> None:
        shared = Shared(lambda: 7, lambda _: 0.01)
        seen = []
        async for value in shared.watch(keep_alive=0.05):
            seen.append(value)
            if len(seen) == 3:
                break
        assert seen == [7, None, None]

    asyncio.run(scene())


def test_closing_ends_every_watch_at_once() -> None:
    async def scene() -> None:
        shared = SharedByKey(lambda key: key, lambda _: 60.0)

        async def watch(key: str) -> list[object]:
            return [value async for value in shared.watch(key, keep_alive=60.0)]

        viewers = [asyncio.create_task(watch(key)) for key in "aab"]
        await asyncio.sleep(0.1)
        shared.close()
        assert await asyncio.wait_for(asyncio.gather(*viewers), 2) == [["a"], ["a"], ["b"]]

    asyncio.run(scene())


def test_a_failed_read_ends_the_watch_and_the_next_one_starts_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = False
    reads = 0

    def read() -> int:
        nonlocal reads
        reads += 1
        if broken:
            raise ConnectionError("gone")
        return reads

    async def scene() -> None:
        nonlocal broken
        shared = Shared(read, lambda _: 0.01)
        assert len(await _take(shared, 2)) == 2
        broken = True
        assert await asyncio.wait_for(_take(shared, 1), 2) == []
        assert "gone" in caplog.text
        broken = False
        before = reads
        (first,) = await _take(shared, 1)
        assert first > before, "a value from before the failure"

    asyncio.run(scene())
