"""Threads that publish for coroutines."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any, ClassVar

#: Threads that publish for coroutines. A publish takes the interpreter's lock for most of its
#: time, so more threads would only make the loop wait longer for its turn.
PUBLISHERS = 2

Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


async def in_publisher(call: Callable[[], Any]) -> Any:
    """What ``call()`` returns or raises, called in one of the process's publishing threads.

    Cancelled before its turn it is not called.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    _publishers().put((_Outcomes.of(loop), future, call))
    return await future


async def in_new_thread(call: Callable[[], Any]) -> Any:
    """The same in a thread of its own, for what may wait for further such calls."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    job = (_Outcomes.of(loop), future, call)
    threading.Thread(target=_do, args=job, name="cloche-eager", daemon=True).start()
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
            else:
                future.set_exception(error)


Job = tuple[_Outcomes, "asyncio.Future[Any]", Callable[[], Any]]


def _do(outcomes: _Outcomes, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
    if future.cancelled():
        return
    try:
        outcomes.tell((future, call(), None))
    except BaseException as error:  # noqa: BLE001 (the caller gets it)
        outcomes.tell((future, None, error))


def _serve(jobs: SimpleQueue[Job]) -> None:
    while True:
        _do(*jobs.get())


@cache
def _publishers() -> SimpleQueue[Job]:
    """The queue of the process's publishing threads."""
    jobs: SimpleQueue[Job] = SimpleQueue()
    for _ in range(PUBLISHERS):
        threading.Thread(target=_serve, args=[jobs], name="cloche-publish", daemon=True).start()
    return jobs


# A forked child has none of the parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_publishers.cache_clear)
