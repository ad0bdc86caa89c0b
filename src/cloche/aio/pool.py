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
from threading import get_ident
from time import monotonic, sleep
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop

from cloche.aio import tracer
from cloche.aio.crew import Crew
from cloche.aio.direct_job import DirectJob
from cloche.aio.direct_step import DirectStep
from cloche.aio.job import Job, as_delivered, terminated
from cloche.aio.lanes import Lane
from cloche.aio.limits import GRACE, HARD, SOFT
from cloche.aio.loop import LoopThread
from cloche.aio.outbox import Outbox
from cloche.aio.renewal import Renewal
from cloche.aio.run import REVOKED, STOPPED, TIMEOUT
from cloche.aio.watchdog import Watchdog
from cloche.aio.writers import Writers

logger = get_logger("cloche.aio")

#: Plain ``def`` tasks at a time at most, unless the setting ``workers.NAME.sync_concurrency``
#: (in Celery: ``cloche_sync_concurrency``) says otherwise.
SYNC_CONCURRENCY = 8
#: Seconds that cancelled bodies have for their clean-up when the worker stops at once.
COLD_GRACE = 10.0


class TaskPool(BasePool):
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

    def _ended(self, job: Job, which: str, told: Any) -> None:
        """A job's body has ended, for whatever reason; from any thread."""
        job.ended = True
        self.watchdog.ended(job)
        fate = job.run.fate
        if fate == TIMEOUT:  # reported when the limit passed
            return
        if fate == STOPPED:
            self._outbox.put(self._forget, job)
        elif fate == REVOKED:
            self._outbox.put(self._settle, job, "error", terminated(job.signum))
        else:
            self._outbox.put(self._settle, job, which, as_delivered(which, told))

    # Jobs go out, in the consumer's thread.

    def _settle(self, job: Job, which: str, *told: Any) -> None:
        """Tell Celery how ``job`` ended and give its slot to the next one. Once."""
        if job.settled:
            return
        job.settled = True
        try:
            job.call(which, *told)
        finally:
            self.release(job)

    def release(self, job: Job) -> None:
        """The slot of a settled job is free for the next one."""
        self._jobs.discard(job)
        self._renewal.count()
        job.lane.release()
        job.over()

    def _forget(self, job: Job) -> None:
        job.settled = True
        self._jobs.discard(job)

    # Limits, revokes.

    def _expired(self, job: Job, kind: str, seconds: float) -> None:
        """A deadline of ``job`` has passed. In the watchdog's thread."""
        if kind == SOFT and job.run.fate is None:
            self._outbox.put(job.call, "timeout", True, seconds)
            if job.lane is self._lane:
                self._loop.call_soon_threadsafe(job.run.soften)
        elif kind == HARD and job.run.settle(TIMEOUT):
            self._outbox.put(self._settle, job, "timeout", False, seconds)
            self._cancel(job, "hard time limit")
        elif kind == GRACE and not job.ended:
            logger.error("%r goes on though it was cancelled: its slot is given away", job)
            self._outbox.put(self._settle, job, "error", terminated(job.signum))

    def _cancel(self, job: Job, why: str) -> None:
        if job.lane is self._lane:
            self._loop.call_soon_threadsafe(job.run.throw, asyncio.CancelledError(why))

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Celery is about to store REVOKED: from now on nothing of the body's counts.

        If the body's outcome is on its way to the backend already it goes first, so that it
        cannot overwrite REVOKED.
        """
        job = getattr(pid, "job", None)
        if job is not None and not job.run.settle(REVOKED):
            deadline = monotonic() + 1.0
            while not job.ended and monotonic() < deadline:
                sleep(0.002)

    def end(self, job: Job, signum: int | None) -> None:
        """End a job by revoke or cancel: cancelled if it runs, dropped if it waits."""
        job.signum = signum
        if job.lane.remove(job):
            job.run.settle(REVOKED)
            self._forget(job)
            job.call("error", terminated(signum))
        elif (job.run.settle(REVOKED) or job.run.fate == REVOKED) and not job.ended:
            self._cancel(job, "revoked")
            self.watchdog.give_grace(job)

    def flush(self) -> None:
        """The connection is lost: what has not begun comes again from the broker."""
        for lane in (self._lane, self._plain):
            for job in lane.drop():
                self._forget(job)

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

    # The end.

    def on_close(self) -> None:
        self._closing = True

    def on_stop(self) -> None:
        """Wait for what runs, as the consumer's thread: heartbeats and acks go on."""
        if self._thread is None:
            return
        self._closing = True
        deadline = None
        if worker_state.should_terminate:
            self.flush()
            deadline = monotonic() + COLD_GRACE
        hub = get_event_loop()
        while self._jobs and (deadline is None or monotonic() < deadline):
            self._outbox.wait(0.1)
            if hub is not None:
                hub.fire_timers()
                _run_ready_callbacks(hub)
        self._shut()
        if hub is not None:
            _run_ready_callbacks(hub)

    def on_terminate(self) -> None:
        """Cancel what runs and tell nobody: what is not acknowledged is run by others."""
        if self._thread is None:
            return
        self._closing = True
        self.flush()
        for job in tuple(self._jobs):
            job.run.settle(STOPPED)
            self._cancel(job, "the worker is being terminated")
        deadline = monotonic() + COLD_GRACE
        while self._jobs and monotonic() < deadline:
            self._outbox.wait(0.1)
        self._shut()

    def _shut(self) -> None:
        self._thread = None
        self._outbox.drain()
        self.watchdog.stop()
        self._writers.stop()
        self._crew.stop()
        self._outbox.close()

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
