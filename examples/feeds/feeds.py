"""Coroutines as tasks: many requests at once in one process.

Run it:  cloche up -A feeds
Use it:  python -c "from feeds import sizes; print(sizes.delay(['https://example.org']).get())"
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2

from cloche import aget, async_task, create_app, resource

app = create_app("feeds")


@resource
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """One client per process: opened on first use, closed when the worker stops."""
    async with httpx2.AsyncClient(timeout=10, follow_redirects=True) as client:
        yield client


@async_task(app=app, name="tasks.feeds.size", autoretry_for=(httpx2.TransportError,))
async def size(url: str) -> int:
    """Bytes behind one address."""
    client = await http()
    return len((await client.get(url)).content)


@async_task(app=app, name="tasks.feeds.sizes")
async def sizes(urls: list[str]) -> dict[str, int]:
    """Bytes behind each address, fetched by tasks of their own."""
    sent = [await size.adelay(url) for url in urls]
    return dict(zip(urls, await asyncio.gather(*map(aget, sent)), strict=True))
