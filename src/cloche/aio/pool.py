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
from time import monotonic, sleep, time
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Task, states
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from celery.worker import request as worker_request
from celery.worker import state as worker_state
from kombu.asynchronous import Hub, get_event_loop

from cloche.aio import loop_backend, tracer
from cloche.aio import task_stacks as stacks
from cloche.aio.bridge import Nestable
from cloche.aio.driving import FINISHED, REVOKED, STOPPED, TIMEOUT, Drive
from cloche.aio.executor import DaemonThreads, Writers
from cloche.aio.job import DirectJob, FunctionJob, Job, JobPid, as_delivered, terminated
from cloche.aio.loop import LoopThread
from cloche.aio.receiver import DirectStep
from cloche.aio.slots import Slots
from cloche.aio.task import adopt, is_coroutine_task
from cloche.aio.watchdog import GRACE, HARD, SOFT, LoopWatchdog
from cloche.worker.consumer_calls import ConsumerCalls
from cloche.worker.recycling import Renewal
from cloche.worker.unpatched import ImportStep, runs_unpatched

logger = get_logger("cloche.aio")

#: Seconds that cancelled bodies have for their clean-up when the worker stops at once.
COLD_GRACE = 10.0

#: Plain ``def`` tasks at a time at most, unless the setting ``workers.NAME.sync_concurrency``
#: (in Celery: ``cloche_sync_concurrency``) says otherwise.
SYNC_CONCURRENCY = 8


class TaskPool(BasePool):
    """Runs coroutines on the process's loop and everything else in threads."""

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, app: Any = None, **options: Any) -> None:
        super().__init__(*args, app=app, **options)
        if app is not None:  # the consumer is made after its pool
            app.steps["consumer"].update((ImportStep, DirectStep))

    def on_start(self) -> None:
        initargs = self.options.get("initargs") or (None, None)
        self._hostname = initargs[1] or gethostname()
        self._traces: dict[str, tracer.Trace | None] = {}
        for task in self.app.tasks.values():
            adopt(task)
        self._jobs: set[Job] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox: deque[Job] = deque()
        self._awake = self._closing = False
        self._thread: LoopThread | None = LoopThread.of_process()
        self._loop = self._thread.loop
        self._writers = Writers(self._loop)
        #: What jobs of the direct path begin with, each with a copy.
        self.context = copy_context()
        self._calls = ConsumerCalls()
        if self.options.get("threads", True):
            self._calls.serve()
        self.watchdog = LoopWatchdog(self._loop, self._expired)
        self.watchdog.start()
        plain = self.app.conf.get("cloche_sync_concurrency") or min(self.limit, SYNC_CONCURRENCY)
        self._crew = DaemonThreads("cloche-sync")
        #: Soft and hard limit of those who name none, in seconds.
        self._limits = (self.options.get("soft_timeout"), self.options.get("timeout"))
        self._slots = Slots(self.limit, self._start_coroutine)
        self._plain_slots = Slots(plain, self._start_plain)
        self._renewal = Renewal(
            self.options.get("maxtasksperchild"), self.options.get("max_memory_per_child")
        )

    def register_with_event_loop(self, hub: Hub) -> None:
        self._calls.register(hub)

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
        of_task = target in (worker_request.fast_trace_task, worker_request.trace_task_ret)
        task = self.app.tasks[message[0]] if of_task else None
        coroutine = task is not None and is_coroutine_task(task)
        soft, hard = self._limits
        job = (Job if of_task else FunctionJob)(
            self._slots if coroutine else self._plain_slots,
            target,
            message,
            {
                "success": callback,
                "accept": accept_callback,
                "error": error_callback,
                "timeout": timeout_callback,
            },
            (soft_timeout or soft, timeout or hard),
            self.end,
        )
        job.kwargs = kwargs or {}
        if coroutine:
            job.trace = self._trace(task)
        if not self._closing:  # else it is not acknowledged: the broker gives it to another
            self._jobs.add(job)
            job.slots.put(job)
        return job

    def consumer_begins(self) -> None:
        """Celery's consumer has made its tracers, of what it found in Celery's place by then."""
        self._traces.clear()

    def _trace(self, task: Task) -> tracer.Trace | None:
        """How to run a coroutine task; None: by Celery's tracer."""
        try:
            return self._traces[task.name]
        except KeyError:
            own = runs_unpatched(task)
            trace = tracer.build(task, self.app, self._hostname, self._writers) if own else None
            self._traces[task.name] = trace
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
        job = DirectJob(self._slots, request, trace, self._limits, self.end)
        if not self._closing:
            self._jobs.add(job)
            self._slots.put(job)
        return job

    def _start_coroutine(self, job: Job) -> bool:
        if get_ident() != self.watchdog.loop_thread:
            return self._begin(job)
        if isinstance(job, DirectJob) and not job.request.unwanted:
            self._start_direct(job)
        else:  # Celery's callbacks of the others are for the consumer's thread
            self._calls.put(self._start_late, job)
        return True

    def _start_late(self, job: Job) -> None:
        if not self._begin(job):
            self._slots.release()

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
                began = job.run.outcome is None
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
            run = self._run(job) if job.trace is not None else self._run_nested(job)
            task = self._loop.create_task(run, name=job.id)
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

    async def _run_nested(self, job: Job) -> None:
        """A coroutine task by Celery's own tracer, and whatever somebody has put around it."""
        task = self.app.tasks[job.name]
        stacks.install(task)
        stacks.current_run.set(job.run)
        loop_backend.use(self.app)
        job.run.nested, job.run.writers = task, self._writers
        try:
            result = await Drive(Nestable(_called(job.target, job.message)))
        except BaseException as exc:  # noqa: BLE001 (told to Celery's request)
            self._ended(job, "error", ExceptionInfo((type(exc), exc, exc.__traceback__)))
        else:
            self._ended(job, "success", result)

    def _run_plain(self, job: Job) -> None:
        """A ``def`` task, by Celery's own tracer, or an extension's function: in a thread."""
        try:
            job.thread = get_ident()
            try:
                result = job.target(*job.message, **job.kwargs)
            finally:
                job.thread = None
        except BaseException as exc:  # noqa: BLE001 (told to Celery's request)
            self._ended(job, "error", ExceptionInfo((type(exc), exc, exc.__traceback__)))
        else:
            self._ended(job, "success", result)

    # A direct job begins, runs and ends in the loop's own thread; what does not end in plain
    # success ends as every job does, by Celery's callbacks in the consumer's thread.

    def _start_direct(self, job: DirectJob) -> None:
        """Tell Celery's state that it begins, and begin."""
        pid = JobPid(os.getpid())
        pid.job = job
        job.request.begins(pid, time())
        if job.soft or job.hard:
            self.watchdog.began(job)
        job.run.on_over = job.vacate
        # In a context of its own: it may begin in the turn of another one that has just ended.
        task = self._loop.create_task(self._run_direct(job), context=self.context.copy())
        job.run.task = task
        self.watchdog.runs(job, task)

    async def _run_direct(self, job: DirectJob) -> None:
        request = job.request
        try:
            outcome = await job.trace(job.id, request._args, request._kwargs, job.headers, job.run)
        except BaseException as exc:  # noqa: BLE001 (told to Celery's request)
            self._ended(job, "error", ExceptionInfo((type(exc), exc, exc.__traceback__)))
            return
        if outcome.state == states.SUCCESS and job.run.outcome == FINISHED:
            self._succeeded(job, outcome)
        elif outcome.left:
            self._ended(job, "error", outcome.retval)
        else:
            self._ended(job, "success", outcome.message)

    def _succeeded(self, job: DirectJob, outcome: Any) -> None:
        """The usual end: ``_ended`` and ``_finish`` in one, without a hand-over."""
        job.ended = True
        self.watchdog.ended(job)
        if job.finished:
            return
        job.finished = True
        try:
            job.request.on_success(outcome.message)
        except Exception:
            logger.exception("the pool goes on after an error in %r", job)
        finally:
            self.release(job)

    # Size.

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self._slots.limit = self.limit
        self._slots.fill()

    def shrink(self, n: int = 1) -> None:
        if self.limit - n < 1:
            raise ValueError("the pool cannot shrink below one")
        self.limit -= n
        self._slots.limit = self.limit

    # What ``inspect stats`` shows.

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        limits = (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0)
        info.update({
            "processes": [os.getpid()],
            "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
            "timeouts": limits,
            "running": self._slots.running,
            "waiting": len(self._slots),
            "sync-concurrency": self._plain_slots.limit,
            "sync-running": self._plain_slots.running,
            "stalls": self.watchdog.stalls,
        })  # fmt: skip
        return info

    # Jobs end: told to Celery, limited, revoked, stopped. From any thread.

    def _ended(self, job: Job, which: str, told: Any) -> None:
        """A job's body has ended, for whatever reason; from any thread."""
        job.ended = True
        self.watchdog.ended(job)
        outcome = job.run.outcome
        if outcome == TIMEOUT:  # reported when the limit passed
            return
        if outcome == STOPPED:
            self._calls.put(self._forget, job)
        elif outcome == REVOKED:
            self._calls.put(self._finish, job, "error", terminated(job.signum))
        else:
            delivered = as_delivered(which, told) if job.of_task else told
            self._calls.put(self._finish, job, which, delivered)

    # Jobs go out, in the consumer's thread.

    def _finish(self, job: Job, which: str, *told: Any) -> None:
        """Tell Celery how ``job`` ended and give its slot to the next one. Once."""
        if job.finished:
            return
        job.finished = True
        try:
            job.call(which, *told)
        finally:
            self.release(job)

    def release(self, job: Job) -> None:
        """The slot of a finished job is free for the next one."""
        self._jobs.discard(job)
        self._renewal.count()
        job.vacate()
        job.over()

    def _forget(self, job: Job) -> None:
        job.finished = True
        self._jobs.discard(job)

    # Limits, revokes.

    def _expired(self, job: Job, kind: str, seconds: float) -> None:
        """A deadline of ``job`` has passed. In the watchdog's thread."""
        if kind == SOFT and job.run.outcome is None:
            self._calls.put(job.call, "timeout", True, seconds)
            if job.slots is self._slots:
                self._loop.call_soon_threadsafe(job.run.soften)
        elif kind == HARD and job.run.decide(TIMEOUT):
            self._calls.put(self._finish, job, "timeout", False, seconds)
            self._cancel(job, "hard time limit")
        elif kind == GRACE and not job.ended:
            logger.error("%r goes on though it was cancelled: its slot is given away", job)
            self._calls.put(self._finish, job, "error", terminated(job.signum))

    def _cancel(self, job: Job, why: str) -> None:
        if job.slots is self._slots:
            self._loop.call_soon_threadsafe(job.run.throw, asyncio.CancelledError(why))

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Celery is about to store REVOKED: from now on nothing of the body's counts.

        If the body's outcome is on its way to the backend already it goes first, so that it
        cannot overwrite REVOKED.
        """
        job = getattr(pid, "job", None)
        if job is not None and not job.run.decide(REVOKED):
            deadline = monotonic() + 1.0
            while not job.ended and monotonic() < deadline:
                sleep(0.002)

    def end(self, job: Job, signum: int | None) -> None:
        """End a job by revoke or cancel: cancelled if it runs, dropped if it waits."""
        job.signum = signum
        if job.slots.remove(job):
            job.run.decide(REVOKED)
            self._forget(job)
            job.call("error", terminated(signum))
        elif (job.run.decide(REVOKED) or job.run.outcome == REVOKED) and not job.ended:
            self._cancel(job, "revoked")
            self.watchdog.give_grace(job)

    def flush(self) -> None:
        """The connection is lost: what has not begun comes again from the broker."""
        for slots in (self._slots, self._plain_slots):
            for job in slots.drop():
                self._forget(job)

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
            self._calls.wait(0.1)
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
            job.run.decide(STOPPED)
            self._cancel(job, "the worker is being terminated")
        deadline = monotonic() + COLD_GRACE
        while self._jobs and monotonic() < deadline:
            self._calls.wait(0.1)
        self._shut()

    def _shut(self) -> None:
        self._thread = None
        self._calls.drain()
        self.watchdog.stop()
        self._writers.stop()
        self._crew.stop()
        self._calls.close()


async def _called(target: Callable[..., Any], message: tuple[Any, ...]) -> Any:
    return target(*message)
