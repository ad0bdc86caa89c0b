"""The threads pool of ``cloche worker``.

Threads do not wait for their results to be stored (:mod:`cloche.broker.results.deferred`), and one
that is done takes the next job: where tasks are short, few threads do all, without handing the
interpreter's lock to each other for every task.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from celery.concurrency import thread
from celery.concurrency.base import apply_target
from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.log import get_logger
from celery.worker import request as worker_request
from kombu.asynchronous import get_event_loop

from cloche.broker.results import deferred as results_later
from cloche.worker.recycling import Recycled
from cloche.worker.unpatched import tracing_is_unpatched

logger = get_logger("cloche.transport")

#: Seconds between two looks at the timers while a stopping worker waits.
_TIMERS_INTERVAL = 0.1


class Threads(thread.TaskPool):
    """Celery's, see above. Other backends store as ever."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._crew = WorkerThreads(self.executor, self.limit, results_later.tell_idle)

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
                    self._apply(target, args or (), kwargs, callback, accept_callback)
                    future.set_result(None)
                except BaseException as error:  # noqa: BLE001 (for who waits, as in Celery's)
                    future.set_exception(error)

        self._crew.submit(job)
        return thread.ApplyResult(future)

    def run(self, request: Any) -> None:
        """Run the task of a plain request (:mod:`cloche.worker.receiver`) in a thread."""

        def job() -> None:
            try:
                self._run(request)
            finally:
                self.ended()

        self._crew.submit(job)

    def ended(self) -> None:
        """A plain request has been run, in one of the threads."""

    @cached_property
    def _defers(self) -> bool:
        """Whether threads go on before results are stored: not if something around Celery's
        tracer would see that they are not. As of the first task."""
        return tracing_is_unpatched()

    def _run(self, request: Any) -> None:
        message = (request._type, request.id, request._request_dict, request._body, None, None)
        target = worker_request.fast_trace_task
        self._apply(target, message, None, request.on_success, request.on_accepted)

    def _apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        callback: Any,
        accept_callback: Any,
    ) -> None:
        if not self._defers:
            apply_target(target, args, kwargs, callback, accept_callback)
            return
        with results_later.Deferring() as deferring:
            apply_target(target, args, kwargs, deferring.done(callback), accept_callback)

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
            ending.join(_TIMERS_INTERVAL)
            if hub is not None:
                hub.fire_timers()
                _run_ready_callbacks(hub)
        super().on_stop()
        results_later.drain(self.app)


class ThreadsPool(Recycled, Threads):
    """The threads pool of ``cloche worker``."""


class WorkerThreads:
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
