"""The threads pool of ``cloche worker``.

Threads do not wait for their results to be stored (:mod:`cloche.broker.results_later`), and one
that is done takes the next job: where tasks are short, few threads do all, without handing the
interpreter's lock to each other for every task.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from celery.app.trace import fast_trace_task
from celery.concurrency import thread
from celery.concurrency.base import apply_target
from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.log import get_logger
from kombu.asynchronous import get_event_loop

from cloche.app.recycling import Recycled
from cloche.broker import results_later

logger = get_logger("cloche.transport")

#: Seconds between two looks at the timers while a stopping worker waits.
_TURN = 0.1


class Threads(thread.TaskPool):
    """Celery's, see above. Other backends store as ever."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._crew = Crew(self.executor, self.limit, results_later.tell_idle)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> thread.ApplyResult:
        """Run ``target`` in a thread."""
        future: Future[None] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    _apply(target, args or (), kwargs, callback, accept_callback)
                    future.set_result(None)
                except BaseException as error:  # noqa: BLE001 (for who waits, as in Celery's)
                    future.set_exception(error)

        self._crew.submit(job)
        return thread.ApplyResult(future)

    def run(self, request: Any) -> None:
        """Run the task of a plain request (:mod:`cloche.app.plain`) in a thread."""

        def job() -> None:
            try:
                _run(request)
            finally:
                self.ended()

        self._crew.submit(job)

    def ended(self) -> None:
        """A plain request has been run, in one of the threads."""

    def on_stop(self) -> None:
        """Let running tasks end and their results be stored.

        Celery's waits here and does nothing else: a RabbitMQ that hears no heartbeat meanwhile
        closes the connection, and what has run runs again.
        """
        self._crew.close()
        ending = threading.Thread(target=self.executor.shutdown, kwargs={"cancel_futures": True})
        ending.start()
        hub = get_event_loop()
        while ending.is_alive():
            ending.join(_TURN)
            if hub is not None:
                hub.fire_timers()
                _run_ready_callbacks(hub)
        super().on_stop()
        results_later.drain(self.app)


class TaskPool(Recycled, Threads):
    """The threads pool of ``cloche worker``."""


class Crew:
    """Shares out jobs among threads of ``executor``, at most ``most`` at a time.

    A job wakes one thread; a thread that begins and sees more jobs wakes the next. So a burst of
    short ones is done by the first, while long ones find all threads. ``idle`` is called by a
    thread that finds no job.
    """

    def __init__(self, executor: ThreadPoolExecutor, most: int, idle: Callable[[], None]) -> None:
        self._executor = executor
        self._most = most
        self._idle = idle
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = 0
        self._coming = self._closed = False
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], None]) -> None:
        """Have it called in a thread. Raises RuntimeError after :meth:`close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool of threads has been stopped")
            self._jobs.append(job)
            self._call()

    def close(self) -> None:
        """Forget the jobs no thread has begun, and take no more."""
        with self._lock:
            self._closed = True
            self._jobs.clear()

    def _call(self) -> None:
        """One more thread, unless one comes already."""
        if not self._coming and self._jobs and self._busy < self._most:
            self._executor.submit(self._work)  # it waits for our lock before it does anything
            self._coming = True
            self._busy += 1

    def _work(self) -> None:
        with self._lock:
            self._coming = False
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:  # as Celery's, whose futures keep what nobody asks for
                logger.exception("a thread goes on after an error")
            del job

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._jobs:
                job = self._jobs.popleft()
                self._call()
                return job
            self._busy -= 1
        self._idle()
        return None


def _run(request: Any) -> None:
    message = (request._type, request.id, request._request_dict, request._body, None, None)
    _apply(fast_trace_task, message, None, request.on_success, request.on_accepted)


def _apply(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    callback: Any,
    accept_callback: Any,
) -> None:
    with results_later.Deferring() as deferring:
        apply_target(target, args, kwargs, deferring.done(callback), accept_callback)
