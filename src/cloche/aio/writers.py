"""What must not block the loop: results stored, messages published, in a few threads.

A tracer awaits its turn here. Each thread has its own result backend connection (Celery's
backends are per thread), so their number bounds the connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from celery import Task
from celery.app.task import Context

#: Threads that write. Redis answers in a fraction of a millisecond: few suffice.
THREADS = 4


class Store(Protocol):
    """Where a tracer leaves what blocks. The direct path has one that batches."""

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)`` off the loop, in the caller's context: its value or error."""

    async def done(self, task: Task, context: Context, retval: Any, publish: bool) -> None:
        """Record success: ``backend.mark_as_done``, chord part included."""


class Writers:
    """A :class:`Store` of threads, shared by all runs of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int = THREADS) -> None:
        self._loop = loop
        self._todo: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._todo = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._awake = False
        self._limit = threads
        self._threads: list[Thread] = []
        self._waiting = 0

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        future = self._loop.create_future()
        context = copy_context()
        self._waiting += 1
        self._staff()
        self._todo.put((future, lambda: context.run(function, *args)))
        return await future

    async def done(self, task: Task, context: Context, retval: Any, publish: bool) -> None:
        await self.call(mark_as_done, task, context, retval, publish)

    def stop(self) -> None:
        """Let the threads finish what they have and end."""
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join(5)

    def _staff(self) -> None:
        if len(self._threads) < min(self._limit, self._waiting):
            name = f"cloche-writer-{len(self._threads)}"
            self._threads.append(Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            future, function = item
            value, error = None, None
            try:
                value = function()
            except BaseException as exc:  # noqa: BLE001 (raised where it is awaited)
                error = exc
            self._done.append((future, value, error))
            del item, future, function, value, error
            if not self._awake:
                self._awake = True
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _answer(self) -> None:
        self._awake = False
        while self._done:
            future, value, error = self._done.popleft()
            self._waiting -= 1
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            elif isinstance(error, StopIteration):
                future.set_exception(RuntimeError(repr(error)))
            else:
                future.set_exception(error)


def mark_as_done(task: Task, context: Context, retval: Any, publish: bool) -> None:
    """Celery's own record of a success, in the backend of the thread it is called in."""
    task.backend.mark_as_done(context.id, retval, context, publish)
