"""Coroutines in synchronous code: run on the process's loop, waited for here.

This is what ``run`` of a coroutine task does in prefork, threads, solo and eager mode.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from greenlet import getcurrent, greenlet

from cloche.aio import task_stacks as carried
from cloche.aio import task_stacks as stacks
from cloche.aio.driving import CoroutineRun, Drive
from cloche.aio.loop import LoopThread
from cloche.errors import CoroutineTaskError, TaskCancelledError


class _Body(greenlet):
    """Runs a coroutine from its first step to its last, in the context of who started it.

    One greenlet for all steps: those that libraries start inside have it as their parent, and
    switch to it as long as they live.
    """

    def __init__(self) -> None:
        super().__init__(wait_here)
        self.gr_context = getcurrent().gr_context


class Nestable(Coroutine[Any, Any, Any]):
    """``coroutine``, in whose synchronous callees :func:`wait_here` works."""

    __slots__ = ("_body", "_coroutine", "cr_running")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._body: _Body | None = None
        #: Whether it runs at this moment (as of a native coroutine).
        self.cr_running = False

    def send(self, value: Any) -> Any:
        """Go on with ``value``; what is awaited next. Raises StopIteration at the end."""
        if self._body is not None:
            return self._go_on(self._body, self._body.switch, value)
        self._body = _Body()
        return self._go_on(self._body, self._body.switch, self._coroutine)

    def throw(self, error: Any, *more: Any) -> Any:
        """Go on by raising ``error``; what is awaited next."""
        if self._body is None:
            return self._coroutine.throw(error)
        return self._go_on(self._body, self._body.throw, error)

    def close(self) -> None:
        """End it; synchronous code that waits inside is left by GreenletExit."""
        if self._body is not None and not self._body.dead:
            self._body.throw()
        self._coroutine.close()

    def __await__(self) -> Any:
        raise TypeError("drive a Nestable by send() and throw()")

    def _go_on(self, body: _Body, step: Callable[[Any], Any], value: Any) -> Any:
        self.cr_running = True
        try:
            awaited = step(value)
        finally:
            self.cr_running = False
        if body.dead:
            raise StopIteration(awaited)
        return awaited


def can_wait_here() -> bool:
    """Whether a :class:`Nestable` coroutine has called this code."""
    return isinstance(getcurrent(), _Body)


def wait_here(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What ``coroutine`` returns or raises, while the loop goes on; see :func:`can_wait_here`."""
    outside: greenlet = getcurrent().parent
    go_on, value = coroutine.send, None
    while True:
        try:
            awaited = go_on(value)
        except StopIteration as stop:
            return stop.value
        try:
            go_on, value = coroutine.send, outside.switch(awaited)
        except BaseException as error:  # noqa: BLE001 (raised inside)
            go_on, value = coroutine.throw, error


def run_coroutine(task: Any, body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run the coroutine that ``body()`` makes for ``task``; what it returns or raises.

    What is raised here meanwhile (SoftTimeLimitExceeded, SystemExit, WorkerShutdown: by signal
    handlers) is raised in the coroutine at its current await instead, and its clean-up awaited.
    """
    thread = LoopThread.of_process()
    if not thread.here:
        return Crossing(thread, task, body).outcome()
    if can_wait_here():
        run = stacks.current_run.get()
        mine = isinstance(run, CoroutineRun) and run.nested is task
        return wait_here(run.body(body()) if mine else body())
    raise CoroutineTaskError(
        f"{task.name} was called synchronously on the event loop it has to run on",
        why="waiting for it there would stop the loop, and the task with it",
        fix="await task.adelay(...), or await task.coroutine(...) to run its body right here",
    )


class Crossing:
    """One run of a coroutine on the loop, and the thread that waits for it."""

    def __init__(
        self, thread: LoopThread, task: Any, body: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        stacks.install(task)
        self._thread = thread
        self._app = task.app
        self._name = task.name
        self._body = body
        self._stacks = carried.copy_stacks()
        self._context = copy_context()
        self._drive: Drive | None = None
        self._begun: asyncio.Task[None] | None = None
        self._ended = False
        self._value: Any = None
        self._error: BaseException | None = None
        # A bare lock: a signal handler may raise at any point of the waiting, also in the
        # middle of what threading.Event does. Held until the end.
        self._gate = threading.Lock()
        self._gate.acquire()

    def outcome(self) -> Any:
        """Start it, wait for its end; what it returned or raised."""
        interruption = self._wait_for_end()
        error, self._error = self._error, None
        if interruption is not None and self._came_too_late(interruption, error):
            raise interruption
        if error is None:
            return self._value
        try:
            raise _as_failure(self._name, error, self._drive)
        finally:
            del error  # its traceback leads back to this frame

    def _wait_for_end(self) -> BaseException | None:
        """What interrupted the waiting last, if anything did."""
        interruption: BaseException | None = None
        step: Callable[[], None] = self._begin
        while True:
            try:
                self._thread.call_soon(step)
                while not self._ended:
                    self._gate.acquire()
            except BaseException as error:
                if self._thread.loop.is_closed():
                    raise
                interruption, step = error, partial(self._throw, error)
            else:
                return interruption

    def _came_too_late(self, interruption: BaseException, error: BaseException | None) -> bool:
        """Whether the body had ended before it could see ``interruption``.

        A soft limit that came too late is over; an exit still is one.
        """
        thrown = None if self._drive is None else self._drive.thrown
        seen = interruption in (thrown, error)
        return not seen and not isinstance(interruption, SoftTimeLimitExceeded)

    # On the loop's thread:

    def _begin(self) -> None:
        if self._ended:
            return
        self._app.set_current()  # of this thread; shared tasks ask for it
        try:
            self._drive = Drive(Nestable(self._context.run(self._body)))
        except BaseException as error:  # noqa: BLE001 (wrong arguments: the caller gets it)
            self._error = error
            self._end()
            return
        carried.fill(self._context, self._stacks)
        self._begun = self._thread.loop.create_task(
            self._run(self._drive), name=self._name, context=self._context
        )
        self._begun.add_done_callback(self._end)

    async def _run(self, drive: Drive) -> None:
        try:
            self._value = await drive
        except BaseException as error:  # noqa: BLE001 (asyncio would let SystemExit stop the loop)
            self._error = error

    def _throw(self, error: BaseException) -> None:
        if self._drive is not None:
            self._drive.throw(error)
        elif not self._ended:  # not begun: it never does
            self._error = error
            self._end()

    def _end(self, begun: asyncio.Task[None] | None = None) -> None:
        if begun is not None:
            carried.clear(self._context, self._stacks)
            if begun.cancelled():  # before its first step
                self._error = asyncio.CancelledError()
        self._ended = True
        self._gate.release()


def _as_failure(name: str, error: BaseException, drive: Drive | None) -> BaseException:
    """``error``, but a cancellation nobody asked for as the failure of this one task.

    Celery's tracer takes every other BaseException for the end of the process.
    """
    if not isinstance(error, asyncio.CancelledError) or isinstance(error, SoftTimeLimitExceeded):
        return error
    stopped = drive is None or drive.cancelled
    failure = TaskCancelledError(
        f"the body of {name} ended with CancelledError",
        why="the event loop stopped" if stopped else "what it awaited was cancelled",
    )
    failure.__cause__ = error
    return failure
