"""The thread that sees to time limits and to a loop that somebody blocks.

A coroutine that blocks the loop stops every other one; the loop cannot notice. This thread
asks the loop for a sign of life, logs who holds it, and raises limits in a body that never
awaits by ``PyThreadState_SetAsyncExc``: at the next bytecode of the loop's thread, and only
while the asyncio task that is due is the one that runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Event, Lock, Thread, get_ident
from time import monotonic

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from cloche.aio.job import Job

SOFT, HARD, GRACE = "soft", "hard", "grace"

logger = get_logger("cloche.aio")

#: Seconds between two looks while anything runs.
TICK = 0.1

#: Seconds without a sign of life after which the loop counts as blocked: with the ticks around
#: it the stack is in the log within a second.
STALL_TIMEOUT = 0.8

#: Seconds a body may take to end after it was cancelled by a revoke.
REVOKE_GRACE = 30.0


class Deadlines:
    """Which jobs are due. One ordered row per kind and duration.

    Jobs of one duration fall due in the order they began, so adding and removing is O(1)
    however many there are; durations are few.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, float], OrderedDict[Job, float]] = {}
        self._lock = Lock()

    def add(self, job: Job, kind: str, seconds: float, now: float) -> None:
        """``job`` is due in ``seconds`` from ``now``."""
        with self._lock:
            row = self._rows.setdefault((kind, seconds), OrderedDict())
            row[job] = now + seconds
            row.move_to_end(job)

    def discard(self, job: Job) -> None:
        """The job has ended: none of its deadlines counts."""
        with self._lock:
            for kind, seconds in ((SOFT, job.soft), (HARD, job.hard)):
                if seconds and (row := self._rows.get((kind, seconds))):
                    row.pop(job, None)

    def due(self, now: float) -> Iterator[tuple[Job, str, float]]:
        """(job, kind, seconds) of every deadline that has passed; each is told once."""
        with self._lock:
            found = []
            for (kind, seconds), row in list(self._rows.items()):
                while row and (first := next(iter(row.items())))[1] <= now:
                    del row[first[0]]
                    found.append((first[0], kind, seconds))
                if not row:
                    del self._rows[kind, seconds]
        return iter(found)

    def __bool__(self) -> bool:
        return bool(self._rows)


class LoopWatchdog:
    """Looks after the running jobs of one loop.

    ``expire(job, kind, seconds)`` is called in the watchdog's thread for every limit that
    has passed, to report it. :attr:`stalls` counts the times the loop was blocked, for
    :attr:`blocked_seconds` in all.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, expire: Callable[[Job, str, float], None]
    ) -> None:
        self.stalls = 0
        self.blocked_seconds = 0.0
        self._loop, self._expire = loop, expire
        self._deadlines = Deadlines()
        self._jobs: dict[asyncio.Task[object], Job] = {}
        self._busy = Event()
        self._end = Event()
        self._asked: float | None = None
        self._stalled = False
        self._loop_thread = 0
        #: Jobs that were told something and may not be able to hear: (exception, when).
        self._deaf: dict[Job, tuple[type[BaseException], float]] = {}
        self._thread = Thread(target=self._watch, name="cloche-watchdog", daemon=True)

    @property
    def loop_thread(self) -> int:
        """The identity of the loop's thread."""
        return self._loop_thread

    def start(self) -> None:
        self._loop.call_soon_threadsafe(self._remember_thread)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._busy.set()
        self._thread.join(2)

    def began(self, job: Job) -> None:
        """``job`` starts now: its limits count from here."""
        now = monotonic()
        if job.soft:
            self._deadlines.add(job, SOFT, job.soft, now)
        if job.hard:
            self._deadlines.add(job, HARD, job.hard, now)
        if not self._busy.is_set():
            self._busy.set()

    def runs(self, job: Job, task: asyncio.Task[object]) -> None:
        """``job`` is the asyncio task ``task``. In the loop's thread."""
        self._jobs[task] = job
        job.asyncio_task = task
        if not self._busy.is_set():
            self._busy.set()

    def ended(self, job: Job) -> None:
        if job.soft or job.hard:
            self._deadlines.discard(job)
        if self._deaf:
            self._deaf.pop(job, None)
        if job.asyncio_task is not None:
            self._jobs.pop(job.asyncio_task, None)

    def give_grace(self, job: Job, seconds: float = REVOKE_GRACE) -> None:
        """``job`` was cancelled: if it does not end by itself it is given up."""
        self._deadlines.add(job, GRACE, seconds, monotonic())
        self._deaf[job] = (asyncio.CancelledError, monotonic())
        self._busy.set()

    # The rest runs in the watchdog's own thread, but for the loop's two answers.

    def _remember_thread(self) -> None:
        self._loop_thread = get_ident()

    def _watch(self) -> None:
        while not self._end.is_set():
            if self._idle():
                self._busy.clear()
                if self._idle():
                    self._busy.wait(5.0)
            try:
                self._look(monotonic())
            except Exception:
                logger.exception("the watchdog of the event loop goes on after an error")
            self._end.wait(TICK)

    def _idle(self) -> bool:
        return not self._jobs and not self._deadlines and self._asked is None

    def _look(self, now: float) -> None:
        self._ask(now)
        for job, kind, seconds in self._deadlines.due(now):
            if job.finished and kind != GRACE:
                continue
            self._expire(job, kind, seconds)
            if kind == SOFT:
                self._deaf[job] = (SoftTimeLimitExceeded, now)
            elif kind == HARD:
                self._deaf[job] = (asyncio.CancelledError, now)
        for job in [job for job in self._deaf if job.ended]:
            self._deaf.pop(job, None)
        if self._deaf and (self._stalled or any(job.thread for job in self._deaf)):
            self._shout(now)

    def _ask(self, now: float) -> None:
        if self._asked is None:
            self._asked = now
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # closed
                self._end.set()
        elif now - self._asked >= STALL_TIMEOUT and not self._stalled:
            self._stalled = True
            self.stalls += 1
            self._report(now - self._asked)

    def _answer(self) -> None:
        """In the loop: it is alive."""
        if self._stalled and self._asked is not None:
            self.blocked_seconds += monotonic() - self._asked
            self._stalled = False
        self._asked = None

    def _report(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(none)"
        who = self._running()
        logger.error(
            "The event loop is blocked since %.1f s by %s: nothing else runs meanwhile. "
            "Await, or move blocking work to asyncio.to_thread. Stack:\n%s",
            seconds, who or "an unknown task", stack,
        )  # fmt: skip

    def _running(self) -> Job | None:
        """The job whose body holds the loop's thread now."""
        try:
            task = asyncio.current_task(self._loop)
        except RuntimeError:
            return None
        return None if task is None else self._jobs.get(task)

    def _shout(self, now: float) -> None:
        """Raise in bodies that cannot hear, because they never await."""
        for job, (kind, since) in list(self._deaf.items()):
            if job.thread is not None:
                self._deaf.pop(job)
                self._interrupt(job.thread, kind)
            elif now - since >= STALL_TIMEOUT / 2 and self._running() is job:
                if kind is SoftTimeLimitExceeded:
                    if job.run.softened:
                        self._deaf.pop(job, None)
                        continue
                    job.run.softened = True
                    self._deaf.pop(job, None)
                else:
                    self._deaf[job] = (kind, now + STALL_TIMEOUT)
                logger.warning("%r never awaits: %s is raised in it", job, kind.__name__)
                self._interrupt(self._loop_thread, kind)

    @staticmethod
    def _interrupt(thread: int, kind: type[BaseException]) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
