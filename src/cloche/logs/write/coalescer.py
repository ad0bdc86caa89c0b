"""Batches that arrive at the same time are written as one."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cloche.logs.write.writer import Writer
from cloche.settings import Settings

#: Lines after which a write takes no further batch.
MAX_LINES = 20_000


class Coalescer:
    """For one event loop. What comes while a write runs is the next write."""

    def __init__(self, settings: Settings) -> None:
        self._writer = Writer(settings)
        # Its own, so that nobody else's work in threads holds up the log, or the other way round.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cloche-log-writer")
        self._waiting: list[tuple[Sequence[bytes], bool, asyncio.Future[None]]] = []
        self._work: asyncio.Task[None] | None = None

    async def write(self, lines: Sequence[bytes], *, careful: bool) -> None:
        """Return when all lines are stored. Raises DatabaseError."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((lines, careful, stored))
        if self._work is None:
            self._work = asyncio.create_task(self._write_all(), name="cloche-log-writer")
        await stored

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._write_once()
        finally:
            self._work = None

    async def _write_once(self) -> None:
        batch = self._next()
        lines = [line for lines, _, _ in batch for line in lines]
        careful = any(careful for _, careful, _ in batch)
        loop, error = asyncio.get_running_loop(), None
        try:
            await loop.run_in_executor(self._thread, self._written, lines, careful)
        except Exception as caught:  # noqa: BLE001 (told to each who waits)
            error = caught
        for _, _, stored in batch:
            if stored.done():
                continue  # who waited was cancelled
            stored.set_exception(error) if error else stored.set_result(None)

    def _written(self, lines: Sequence[bytes], careful: bool) -> None:
        self._writer.write(lines, careful=careful)

    def _next(self) -> list[tuple[Sequence[bytes], bool, asyncio.Future[None]]]:
        size = end = 0
        while end < len(self._waiting) and (not end or size < MAX_LINES):
            size += len(self._waiting[end][0])
            end += 1
        taken, self._waiting = self._waiting[:end], self._waiting[end:]
        return taken


_mergers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Coalescer]] = (
    weakref.WeakKeyDictionary()
)


def coalescer(settings: Settings) -> Coalescer:
    """That of the running loop for the database of these settings."""
    ours = _mergers.setdefault(asyncio.get_running_loop(), {})
    place = str(
        settings.database.url.get_secret_value() if settings.database.url else settings.run_dir
    )
    if place not in ours:
        ours[place] = Coalescer(settings)
    return ours[place]
