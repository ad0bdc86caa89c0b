"""Things that live on an event loop (HTTP clients, connection pools), opened once per loop.

::

    @resource
    async def http() -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(timeout=10) as client:
            yield client

    @async_task
    async def fetch(url: str) -> int:
        return (await (await http()).get(url)).status_code
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar, overload

from celery.utils.log import get_logger

from cloche.aio.loop import LoopThread
from cloche.errors import CoroutineTaskError

logger = get_logger(__name__)

T = TypeVar("T")


class Resource(Generic[T]):
    """``await it()`` gives the running loop's own, opened on first use."""

    def __init__(self, name: str, opening: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.name = name
        self._opening = opening
        self._open: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Open[T]] = (
            weakref.WeakKeyDictionary()
        )

    async def __call__(self) -> T:
        """The value; raises what opening it raised (and tries again next time)."""
        loop = asyncio.get_running_loop()
        known = self._open.get(loop)
        if known is None or known.keeper.done():
            known = self._open[loop] = _Open(loop, self._opening(), self.name)
            _opened.setdefault(loop, []).append(known)
        # Shielded: who is cancelled while it opens must not take it from the others.
        return await asyncio.shield(known.value)

    def __repr__(self) -> str:
        return f"<resource {self.name}>"


class _Open(Generic[T]):
    """One open resource. One task enters and leaves it, as cancel scopes want it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        manager: AbstractAsyncContextManager[T],
        name: str,
    ) -> None:
        self.name = name
        self._loop = loop
        self.value: asyncio.Future[T] = loop.create_future()
        self._leave = asyncio.Event()
        # An empty context: what is opened for all has nothing to do with the task that asked.
        self.keeper = loop.create_task(
            self._keep(manager), name=f"resource {name}", context=contextvars.Context()
        )

    async def close(self) -> None:
        """Leave it. Its errors are logged."""
        self._leave.set()
        await asyncio.wait([self.keeper])

    def _is_open(self, value: T) -> None:
        # What it opened itself meanwhile comes before it, and is closed after it.
        order = _opened.get(self._loop)
        if order is not None and self in order:
            order.remove(self)
            order.append(self)
        self.value.set_result(value)

    async def _keep(self, manager: AbstractAsyncContextManager[T]) -> None:
        try:
            async with manager as value:
                self._is_open(value)
                await self._leave.wait()
        except BaseException as error:
            if self.value.done():
                logger.exception("closing the resource %s failed", self.name)
            else:
                self.value.set_exception(error)
                self.value.exception()  # nobody may be left to hear it
            if not isinstance(error, Exception):
                raise


#: What is open on each loop, in the order of opening.
_opened: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Open[Any]]] = (
    weakref.WeakKeyDictionary()
)


async def close_resources() -> None:
    """Close what is open on the running loop, the newest first; use opens it again.

    Workers do so when they stop, and a process for its own loop when it ends.
    """
    for one in reversed(_opened.pop(asyncio.get_running_loop(), [])):
        await one.close()


LoopThread.before_stop(close_resources)


@overload
def resource(opening: Callable[[], AsyncIterator[T]], /) -> Resource[T]: ...
@overload
def resource(opening: Callable[[], AbstractAsyncContextManager[T]], /) -> Resource[T]: ...
@overload
def resource(opening: Callable[[], Awaitable[T]], /) -> Resource[T]: ...


def resource(opening: Callable[[], Any], /) -> Resource[Any]:
    """Declare a resource by how it is opened. ``opening`` takes no arguments and is one of

    - an async generator function that yields it once and closes it afterwards,
    - a callable that gives an async context manager: a client class, a function, a lambda,
    - an ``async def`` that returns it; its ``aclose()``, if it has one, closes it.

    Raises CoroutineTaskError for anything else.
    """
    name = getattr(opening, "__qualname__", repr(opening))
    if inspect.isasyncgenfunction(opening):
        return Resource(name, asynccontextmanager(opening))
    if inspect.iscoroutinefunction(opening):
        return Resource(name, asynccontextmanager(_closing(opening)))
    if not callable(opening) or inspect.isgeneratorfunction(opening):
        raise CoroutineTaskError(
            f"{name} does not open a resource",
            why="it is neither async nor a callable that gives an async context manager",
            fix="write it as `async def` that yields the resource",
        )
    return Resource(name, opening)


def _closing(opening: Callable[[], Awaitable[T]]) -> Callable[[], AsyncIterator[T]]:
    async def opened() -> AsyncIterator[T]:
        value = await opening()
        try:
            yield value
        finally:
            close = getattr(value, "aclose", None)
            if close is not None:
                await close()

    return opened
