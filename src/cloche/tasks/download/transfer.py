"""A coroutine on a thread of its own, for a task that must stay reachable meanwhile."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Transfer(Generic[T]):
    """Runs ``work`` while the calling thread waits in short steps.

    A soft time limit is an exception that a signal handler raises in the main thread. In an
    event loop there it would hit whichever callback runs, and could get lost; in `wait` it
    cannot. Leaving the ``with`` block cancels what still runs and waits until it has ended.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[T] | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        self._thread.join()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most ``seconds``."""
        done, _ = concurrent.futures.wait([self._outcome], timeout=seconds)
        return bool(done)

    def result(self) -> T:
        """What it returned, or what it raised."""
        return self._outcome.result()

    def cancel(self) -> None:
        """Cancel it unless it has ended."""
        self._begun.wait()
        if self._loop and self._task and not self._outcome.done():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _run(self) -> None:
        try:
            self._outcome.set_result(asyncio.run(self._main()))
        except BaseException as error:  # noqa: BLE001 (handed to the waiting thread)
            self._outcome.set_exception(error)
        finally:
            self._begun.set()

    async def _main(self) -> T:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._work)
        self._begun.set()
        return await self._task
