"""Where the direct path's tracer leaves results: successes together, the rest in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Task, states
from celery.app.task import Context

from cloche.aio.writers import Writers


class BatchStore:
    """A :class:`cloche.aio.writers.Store`; one per pool, on its loop.

    Result backends with a ``writer()`` get their successes through it; all else about
    results, and backends without one, goes through the pool's threads.
    """

    def __init__(self, writers: Writers) -> None:
        self._writers = writers
        #: Runs that are over but for their result, which is on its way.
        self.waiting = 0
        #: Called when there is one more of them.
        self.on_waiting: Callable[[], object] = _nothing
        self._by_task: dict[str, Any] = {}
        self._by_backend: dict[str, Any] = {}

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Off the loop."""
        return await self._writers.call(function, *args)

    async def done(self, task: Task, context: Context, retval: Any, publish: bool) -> None:
        """Celery's ``mark_as_done``."""
        writer = self._writer(task)
        if writer is None or context.chord:
            await self._writers.done(task, context, retval, publish)
        elif publish:
            self.waiting += 1
            self.on_waiting()
            try:
                await writer.store(context.id, retval, states.SUCCESS, request=context)
            finally:
                self.waiting -= 1

    def _writer(self, task: Task) -> Any:
        try:
            return self._by_task[task.name]
        except KeyError:
            backend = task.backend
            make = getattr(backend, "writer", None)
            found = None
            if make is not None:
                url = backend.as_uri(include_password=True)
                found = self._by_backend.get(url) or make()
                self._by_backend[url] = found
            self._by_task[task.name] = found
            return found

    async def stop(self) -> None:
        """Store what waits; close."""
        for writer in self._by_backend.values():
            await writer.stop()


def _nothing() -> None:
    """Nobody asked to be told."""
