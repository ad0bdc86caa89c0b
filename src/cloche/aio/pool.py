"""The worker pool of coroutine tasks: ``worker_pool = "cloche.aio.pool:TaskPool"``.

Three places, each with its own business:

- the consumer's thread hands jobs over and makes Celery's callbacks (acks, events, state);
- the process's event loop runs the coroutines (:mod:`cloche.aio.tracer`);
- a few threads store results, publish, and run plain ``def`` tasks.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from threading import get_ident
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.utils.nodenames import gethostname

from cloche.aio import tracer
from cloche.aio.crew import Crew
from cloche.aio.direct_job import DirectJob
from cloche.aio.direct_step import DirectStep
from cloche.aio.job import Job
from cloche.aio.lanes import Lane
from cloche.aio.loop import LoopThread
from cloche.aio.outbox import Outbox
from cloche.aio.pool_endings import Endings
from cloche.aio.renewal import Renewal
from cloche.aio.watchdog import Watchdog
from cloche.aio.writers import Writers

#: Plain ``def`` tasks at a time at most, unless the setting ``workers.NAME.sync_concurrency``
#: (in Celery: ``cloche_sync_concurrency``) says otherwise.
SYNC_CONCURRENCY = 8


class TaskPool(Endings, BasePool):
    """Runs coroutines on the process's loop and everything else in threads."""

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, app: Any = None, **options: Any) -> None:
        super().__init__(*args, app=app, **options)
        if app is not None:  # the consumer is made after its pool
            app.steps["consumer"].add(DirectStep)

    def on_start(self) -> None:
        initargs = self.options.get("initargs") or (None, None)
        self._hostname = initargs[1] or gethostname()
        self._traces: dict[str, tracer.Trace | None] = {}
        self._jobs: set[Job] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox: deque[Job] = deque()
        self._awake = self._closing = False
        self._thread: LoopThread | None = LoopThread.of_process()
        self._loop = self._thread.loop
        self._writers = Writers(self._loop)
        #: What jobs of the direct path begin with, each with a copy.
        self.context = copy_context()
        self._outbox = Outbox()
        if self.options.get("threads", True):
            self._outbox.serve()
        self.watchdog = Watchdog(self._loop, self._expired)
        self.watchdog.start()
        plain = self.app.conf.get("cloche_sync_concurrency") or min(self.limit, SYNC_CONCURRENCY)
        self._crew = Crew("cloche-sync")
        self._lane = Lane(self.limit, self._start_coroutine)
        self._plain = Lane(plain, self._start_plain)
        self._renewal = Renewal(
            self.options.get("maxtasksperchild"), self.options.get("max_memory_per_child")
        )

    def register_with_event_loop(self, hub: Any) -> None:
        self._outbox.register(hub)

    # Jobs come in, in the consumer's thread.

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job:
        message = tuple(args or ())
        trace = self._trace(message[0])
        lane = self._plain if trace is None else self._lane
        job = Job(
            self,
            lane,
            target,
            message,
            {
                "success": callback,
                "accept": accept_callback,
                "error": error_callback,
                "timeout": timeout_callback,
            },
            (
                soft_timeout or self.options.get("soft_timeout"),
                timeout or self.options.get("timeout"),
            ),
        )
        job.trace = trace
        if not self._closing:  # else it is not acknowledged: the broker gives it to another
            self._jobs.add(job)
            lane.put(job)
        return job

    def _trace(self, name: str) -> tracer.Trace | None:
        try:
            return self._traces[name]
        except KeyError:
            task = self.app.tasks[name]
            trace = None
            if tracer.is_coroutine_task(task):
                trace = tracer.build(task, self.app, self._hostname, self._writers)
            self._traces[name] = trace
            return trace

    # Jobs of the direct path come in on the loop.

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that coroutines run on."""
        return self._loop

    @property
    def writers(self) -> Writers:
        """The threads that store and publish."""
        return self._writers

    def direct(self, request: Any, trace: tracer.Trace) -> DirectJob:
        """Run a request's coroutine, now or when a slot is free. On the loop."""
        job = DirectJob(self, self._lane, request, trace)
        if not self._closing:
            self._jobs.add(job)
            self._lane.put(job)
        return job

    def _start_coroutine(self, job: Job) -> bool:
        if get_ident() != self.watchdog.loop_thread:
            return self._begin(job)
        if job.direct and not job.request.unwanted:
            job.start()
        else:  # Celery's callbacks of the others are for the consumer's thread
            self._outbox.put(self._start_late, job)
        return True

    def _start_late(self, job: Job) -> None:
        if not self._begin(job):
            self._lane.release()

    def _begin(self, job: Job) -> bool:
        if not self._accept(job):
            return False
        self._inbox.append(job)
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._take)
        return True

    def _start_plain(self, job: Job) -> bool:
        if not self._accept(job):
            return False
        self._crew.submit(self._run_plain, job)
        return True

    def _accept(self, job: Job) -> bool:
        """Tell Celery that ``job`` starts, unless it was revoked or expired while it waited."""
        began = False
        try:
            if job.request is None or not job.request.revoked():
                job.accept()
                began = job.run.fate is None
        finally:
            if not began:
                self._jobs.discard(job)
        if began:
            self.watchdog.began(job)
        return began

    # On the loop.

    def _take(self) -> None:
        self._awake = False
        while self._inbox:
            job = self._inbox.popleft()
            task = self._loop.create_task(self._run(job), name=job.id)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.watchdog.runs(job, task)

    async def _run(self, job: Job) -> None:
        try:
            args, kwargs, embed = job.arguments(self.app)
            request = job.headers
            request.update(
                {"args": args, "kwargs": kwargs, "hostname": self._hostname, "is_eager": False},
                **embed,
            )
            outcome = await job.trace(job.id, args, kwargs, request, job.run)
        except BaseException as exc:  # noqa: BLE001 (told to Celery's request)
            self._ended(job, "error", ExceptionInfo((type(exc), exc, exc.__traceback__)))
        else:
            if outcome.left:
                self._ended(job, "error", outcome.retval)
            else:
                self._ended(job, "success", outcome.message)

    def _run_plain(self, job: Job) -> None:
        """A ``def`` task, by Celery's own tracer, in a thread."""
        try:
            job.thread = get_ident()
            try:
                result = job.target(*job.message)
            finally:
                job.thread = None
        except BaseException as exc:  # noqa: BLE001 (told to Celery's request)
            self._ended(job, "error", ExceptionInfo((type(exc), exc, exc.__traceback__)))
        else:
            self._ended(job, "success", result)

    # Size.

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self._lane.limit = self.limit
        self._lane.fill()

    def shrink(self, n: int = 1) -> None:
        if self.limit - n < 1:
            raise ValueError("the pool cannot shrink below one")
        self.limit -= n
        self._lane.limit = self.limit

    # What ``inspect stats`` shows.

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        limits = (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0)
        info.update({
            "processes": [os.getpid()],
            "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
            "timeouts": limits,
            "running": self._lane.running,
            "waiting": len(self._lane),
            "sync-concurrency": self._plain.limit,
            "sync-running": self._plain.running,
            "stalls": self.watchdog.stalls,
        })  # fmt: skip
        return info
