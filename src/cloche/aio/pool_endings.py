"""How jobs of the pool end, and the pool itself: told to Celery, limited, revoked, stopped."""

from __future__ import annotations

import asyncio
from time import monotonic, sleep
from typing import Any

from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop

from cloche.aio.crew import Crew
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

#: Seconds that cancelled bodies have for their clean-up when the worker stops at once.
COLD_GRACE = 10.0


class Endings:
    """The part of :class:`cloche.aio.pool.TaskPool` that ends what its other part began."""

    # What it uses of the rest of the pool.
    watchdog: Watchdog
    _closing: bool
    _crew: Crew
    _jobs: set[Job]
    _lane: Lane
    _loop: asyncio.AbstractEventLoop
    _outbox: Outbox
    _plain: Lane
    _renewal: Renewal
    _thread: LoopThread | None
    _writers: Writers

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
        if not job.vacated:
            job.vacated = True
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
