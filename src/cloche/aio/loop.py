"""The event loop of a process: one, long-lived, in a thread of its own.

Every coroutine task of a process runs on it, whatever the pool, so that connections opened by
one task can be used by the next: "attached to a different loop" cannot happen.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from typing import Any, ClassVar

from celery import signals
from celery.utils.log import get_logger

from cloche.process_local import after_fork, here

if sys.platform == "win32":
    from asyncio import new_event_loop
else:
    from uvloop import new_event_loop  # decision 0025

logger = get_logger(__name__)

#: Seconds that what runs on the loop may take to end when the process ends.
STOP_TIMEOUT = 10.0


class LoopThread:
    """An event loop in a daemon thread. Use :meth:`of_process`."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _current: ClassVar[LoopThread | None] = None
    #: Awaited on each loop, in reverse order, before it stops.
    _last_words: ClassVar[list[Callable[[], Awaitable[None]]]] = []

    def __init__(self) -> None:
        self.loop = new_event_loop()
        self._stopping = False
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=[started], name="cloche-loop", daemon=True
        )
        self._thread.start()
        started.wait()

    @classmethod
    def of_process(cls) -> LoopThread:
        """The process's loop, started on first use (after a fork: a new one)."""
        here()
        current = cls._current
        if current is not None and not current._stopping:
            return current
        with cls._lock:
            if cls._current is None or cls._current._stopping:
                _stop_with_process()
                cls._current = cls()
            return cls._current

    @classmethod
    def running(cls) -> LoopThread | None:
        """The process's loop if it was started and not stopped."""
        here()
        current = cls._current
        return None if current is None or current._stopping else current

    @classmethod
    def before_stop(cls, last: Callable[[], Awaitable[None]]) -> None:
        """Have ``last()`` awaited on the process's loop before it stops; the newest first."""
        cls._last_words.append(last)

    @property
    def here(self) -> bool:
        """Whether the caller is on the loop's own thread."""
        return threading.current_thread() is self._thread

    def call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called on the loop. From any thread; returns at once."""
        self.loop.call_soon_threadsafe(fn, *args)

    def stop(self) -> None:
        """Run the last words, cancel what still runs, close the loop: within STOP_TIMEOUT."""
        if self._stopping or self.here:
            return
        self._stopping = True
        self.call_soon(self._begin_end)
        self._thread.join(STOP_TIMEOUT + 1)

    def _begin_end(self) -> None:
        self._ending = self.loop.create_task(self._end(), name="cloche-loop-end")
        self._ending.add_done_callback(lambda _: self.loop.stop())

    def say_last_words(self) -> None:
        """Run the last words now; the loop goes on. Returns within STOP_TIMEOUT."""
        if self._stopping or self.here:
            return
        said = asyncio.run_coroutine_threadsafe(self._say_last_words(), self.loop)
        wait([said], timeout=STOP_TIMEOUT)

    async def _say_last_words(self) -> None:
        for last in reversed(self._last_words):
            await last()

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._say_last_words()
                await self._cancel_all()
                await self.loop.shutdown_asyncgens()
                await self.loop.shutdown_default_executor()
        except TimeoutError:
            logger.warning("what ran on the event loop did not end in %g s", STOP_TIMEOUT)
        except Exception:
            logger.exception("ending the event loop failed")

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(started.set)
        while True:
            try:
                self.loop.run_forever()
                break
            except (SystemExit, KeyboardInterrupt) as exc:
                # asyncio lets these two out of the loop when any task raises them; a
                # sys.exit() in one task is no reason to stop all others.
                logger.warning("a task on the event loop raised %r: the loop goes on", exc)
        self.loop.close()

    @classmethod
    def _forget(cls) -> None:
        cls._lock = threading.Lock()
        cls._current = None


def stop_loop(**_: Any) -> None:
    """Stop the process's loop, if there is one. Again and again is harmless."""
    running = LoopThread.running()
    if running is not None:
        running.stop()


def close_what_is_open(**_: Any) -> None:
    """A worker in this process has stopped; the process itself may go on, and its loop too."""
    running = LoopThread.running()
    if running is not None:
        running.say_last_words()


@functools.cache
def _stop_with_process() -> None:
    """Whichever way it ends; once in a process and the children it forks."""
    # The threads of the parent do not exist in a forked child, and its lock may be held for ever.
    after_fork(LoopThread._forget)
    atexit.register(stop_loop)
    # A prefork child leaves by os._exit, without a thought for atexit.
    signals.worker_process_shutdown.connect(stop_loop, weak=False, dispatch_uid="cloche-loop")
    signals.worker_shutdown.connect(close_what_is_open, weak=False, dispatch_uid="cloche-loop")
