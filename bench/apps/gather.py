"""What a library without a batch call is told to do instead: gather its ordinary one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from itertools import islice


async def in_hundreds(calls: Iterable[Awaitable[object]]) -> None:
    """Await the calls, a hundred at once."""
    remaining = iter(calls)
    while hundred := list(islice(remaining, 100)):
        await asyncio.gather(*hundred)
