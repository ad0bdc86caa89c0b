"""Live pages: one poller for any number of viewers, and server-sent events to each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from contextlib import aclosing
from typing import Generic, TypeAlias, TypeVar

from anyio.to_thread import run_sync
from starlette.responses import StreamingResponse

T = TypeVar("T")

#: What a watch yields: values, and None for "nothing new, still here".
Looks: TypeAlias = AsyncGenerator[T | None, None]

_log = logging.getLogger(__name__)

#: A comment line: keeps proxies from closing a quiet stream.
KEEP_ALIVE = ":\n\n"


class Shared(Generic[T]):
    """Reads a value again and again while somebody watches it.

    ``read`` runs in a thread and must not block long; ``pause`` tells the seconds to wait
    after a value. A hundred viewers cost one stream of reads; without viewers it rests.
    """

    def __init__(self, read: Callable[[], T], pause: Callable[[T], float]) -> None:
        self._read = read
        self._pause = pause
        self._value: T | None = None
        self._known = False
        self._version = 0
        self._broken = False
        self._news: set[asyncio.Event] = set()
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def viewers(self) -> int:
        return len(self._news)

    async def watch(self, keep_alive: float = 15.0) -> Looks[T]:
        """The value now and each time it changed; None after ``keep_alive`` quiet seconds.

        Ends when the server stops and when ``read`` fails: the browser asks again.
        """
        news = asyncio.Event()
        self._news.add(news)
        if self._poller is None or self._poller.done():
            self._known = self._broken = False
            self._poller = asyncio.create_task(self._poll())
        seen = self._version - self._known
        try:
            while not self._closed and not self._broken:
                if self._version > seen:
                    seen = self._version
                    yield self._value
                    continue
                news.clear()
                try:
                    await asyncio.wait_for(news.wait(), keep_alive)
                except TimeoutError:
                    yield None
        finally:
            self._news.discard(news)
            if not self._news and self._poller is not None:
                self._poller.cancel()
                self._poller = None

    def close(self) -> None:
        """End every watch at once."""
        self._closed = True
        self._tell()

    async def _poll(self) -> None:
        while not self._closed:
            try:
                value = await run_sync(self._read)
            except Exception as error:  # noqa: BLE001 (whatever it was: told once, then anew)
                _log.warning("a live view ended: %s", error)
                self._broken = True
                self._tell()
                return
            if not self._known or value != self._value:
                self._value, self._known = value, True
                self._version += 1
                self._tell()
            await asyncio.sleep(self._pause(value))

    def _tell(self) -> None:
        for news in self._news:
            news.set()


class SharedByKey(Generic[T]):
    """A ``Shared`` per key, kept only while somebody watches it."""

    def __init__(self, read: Callable[[Hashable], T], pause: Callable[[T], float]) -> None:
        self._read = read
        self._pause = pause
        self._shared: dict[Hashable, Shared[T]] = {}
        self._closed = False

    async def watch(self, key: Hashable, keep_alive: float = 15.0) -> Looks[T]:
        """As ``Shared.watch`` of the value under ``key``."""
        if self._closed:
            return
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = Shared(lambda: self._read(key), self._pause)
        try:
            async with aclosing(shared.watch(keep_alive)) as values:
                async for value in values:
                    yield value
        finally:
            if shared.viewers == 0 and self._shared.get(key) is shared:
                del self._shared[key]

    def close(self) -> None:
        """End every watch at once."""
        self._closed = True
        for shared in list(self._shared.values()):
            shared.close()


def event(name: str, data: str, *, id: str | None = None) -> str:
    """One event; every line of ``data`` gets its own ``data:`` field."""
    lines = [f"event: {name}"]
    if id is not None:
        lines.append(f"id: {id}")
    lines += [f"data: {line}" for line in data.splitlines() or [""]]
    return "\n".join(lines) + "\n\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Answer with an endless stream that nothing on the way may store or hold back."""
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )
