"""What must not block the loop: results stored, messages published, in a few threads.

A tracer awaits its turn here. Each thread has its own result backend connection (Celery's
backends are per thread), so their number bounds the connections.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Any, ClassVar, Protocol

from celery import Task
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from cloche.process_local import ProcessLocal

#: Threads that write. Redis answers in a fraction of a millisecond: few suffice.
THREADS = 4

#: Threads that publish for coroutines. A publish takes the interpreter's lock for most of its
#: time, so more threads would only make the loop wait longer for its turn.
PUBLISHERS = 2

Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class ResultStore(Protocol):
    """Where a tracer leaves what blocks. The direct path has one that batches."""

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)`` off the loop, in the caller's context: its value or error."""

    async def done(self, task: Task, context: Context, retval: Any, publish: bool) -> None:
        """Record success: ``backend.mark_as_done``, chord part included."""


class Writers:
    """A :class:`ResultStore` of threads, shared by all runs of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int = THREADS) -> None:
        self._outcomes = _Outcomes.of(loop)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._limit = threads
        self._threads: list[Thread] = []
        self._waiting = 0

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting += 1
        if len(self._threads) < min(self._limit, self._waiting):
            name = f"cloche-writer-{len(self._threads)}"
            self._threads.append(_thread(name, self._jobs))
        context = copy_context()
        self._jobs.put((self._outcomes, future, partial(context.run, function, *args)))
        try:
            return await future
        finally:
            self._waiting -= 1

    async def done(self, task: Task, context: Context, retval: Any, publish: bool) -> None:
        await self.call(mark_as_done, task, context, retval, publish)

    def stop(self) -> None:
        """Let the threads finish what they have and end."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(5)


def mark_as_done(task: Task, context: Context, retval: Any, publish: bool) -> None:
    """Celery's own record of a success, in the backend of the thread it is called in."""
    task.backend.mark_as_done(context.id, retval, context, publish)


async def in_publisher(call: Callable[[], Any]) -> Any:
    """What ``call()`` returns or raises, called in one of the process's publishing threads.

    Cancelled before its turn it is not called.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def unless_cancelled() -> Any:
        return None if future.cancelled() else call()

    _publishers.get().put((_Outcomes.of(loop), future, unless_cancelled))
    return await future


async def in_new_thread(call: Callable[[], Any]) -> Any:
    """The same in a thread of its own, for what may wait for further such calls."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    job = (_Outcomes.of(loop), future, call)
    Thread(target=_do, args=job, name="cloche-eager", daemon=True).start()
    return await future


class _Outcomes:
    """What threads have to tell one loop: woken once for all that came meanwhile."""

    _of: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Outcomes]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: deque[Outcome] = deque()
        self._woken = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Outcomes:
        found = cls._of.get(loop)
        if found is None:
            found = cls._of[loop] = cls(loop)
        return found

    def tell(self, outcome: Outcome) -> None:
        self._waiting.append(outcome)
        loop = self._loop()
        if not self._woken and loop is not None:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._woken = False
        while self._waiting:
            future, value, error = self._waiting.popleft()
            if future.done():  # cancelled
                continue
            if error is None:
                future.set_result(value)
            elif isinstance(error, StopIteration):  # a future holds none
                future.set_exception(RuntimeError(repr(error)))
            else:
                future.set_exception(error)


Job = tuple[_Outcomes, "asyncio.Future[Any]", Callable[[], Any]]


def _do(outcomes: _Outcomes, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
    try:
        outcomes.tell((future, call(), None))
    except BaseException as error:  # noqa: BLE001 (the caller gets it)
        outcomes.tell((future, None, error))


def _serve(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        _do(*job)
        del job


def _thread(name: str, jobs: SimpleQueue[Job | None]) -> Thread:
    thread = Thread(target=_serve, args=[jobs], name=name, daemon=True)
    thread.start()
    return thread


def _start_publishers() -> SimpleQueue[Job | None]:
    jobs: SimpleQueue[Job | None] = SimpleQueue()
    for _ in range(PUBLISHERS):
        _thread("cloche-publish", jobs)
    return jobs


#: The queue of the process's publishing threads.
_publishers = ProcessLocal(_start_publishers)


class DaemonThreads:
    """As many threads as there were calls at a time; who calls bounds that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._todo: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]
        self._todo = SimpleQueue()
        self._threads = self._idle = 0
        self._lock = RLock()  # a signal handler may submit while its thread submits

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Have ``function(*args)`` called in a thread of the crew. It raises nothing."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                name = f"{self._name}-{self._threads}"
                self._threads += 1
                Thread(target=self._work, name=name, daemon=True).start()
        self._todo.put((function, args))

    def stop(self) -> None:
        """Let idle threads end, and busy ones when they are done. Waits for none."""
        for _ in range(self._threads):
            self._todo.put(None)

    def _work(self) -> None:
        while True:
            try:
                if (call := self._todo.get()) is None:
                    return
                function, args = call
                function(*args)
                del call, function, args
            except (SoftTimeLimitExceeded, asyncio.CancelledError):
                pass  # a limit raised in this thread that came when its task had just ended
            with self._lock:
                self._idle += 1
