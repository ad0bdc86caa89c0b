"""The prefork pool of ``cloche worker``: a process that has done its tasks is replaced at once."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT
from celery.concurrency import asynpool, prefork
from celery.utils.log import get_logger
from kombu.asynchronous import Hub

from cloche.settings.of_app import state_of

logger = get_logger(__name__)

#: The loop of a process of the pool, and the modules of what it calls itself.
_WORKLOOP = asynpool.Worker.workloop.__code__
_OF_THE_POOL = ("billiard.", "celery.concurrency.", __name__)

#: Seconds within which the parent has usually read the last outcome, and between looks.
EXIT_LOOK_TIMEOUT = 0.2
EXIT_LOOK_INTERVAL = 0.002

#: Seconds after which a process that was seen to exit is looked at last; from then on the pool's
#: own look, every five seconds, has to do.
EXIT_TIMEOUT = 1.0


class MemoryLimit(int):
    """KiB that a pool process may use (``growth``: use more than after its first task).

    After each task billiard asks whether ``used > limit`` (billiard.pool.Worker.workloop), which
    Python asks the limit, being the derived type. Its own word about it is in a log that nobody
    sees, so it is told here.
    """

    growth: bool
    _first: int | None = None

    @classmethod
    def of(cls, kibibytes: int, *, growth: bool) -> MemoryLimit:
        """A limit; each process, being forked, has one of its own."""
        limit = cls(kibibytes)
        limit.growth = growth
        return limit

    def __lt__(self, used: int) -> bool:
        if self.growth and self._first is None:
            self._first = used
        over = used - (self._first or 0) > int(self)
        if over:
            grown = (
                f", {used - self._first} KiB more than after its first task" if self._first else ""
            )
            logger.warning(
                "a pool process ends and is replaced: it uses %d KiB%s (max_memory_per_child is "
                "%d KiB)", used, grown, int(self),
            )  # fmt: skip
        return over

    __hash__ = int.__hash__


class PoolProcess(asynpool.Worker):
    """Celery's process of a pool.

    A soft time limit is a signal (SIGUSR1), for which billiard raises wherever the process is.
    Where a task ends as its limit passes, the exception comes while its outcome is written to the
    pipe, of which the parent then reads half a message: the worker ends with UnpicklingError. Or it
    comes while the process waits for work, and ends it. Here it is raised in jobs alone.

    After its last task (``worker_max_tasks_per_child``) billiard's sleeps 0.1 s before it looks
    whether the parent has read the outcome, which takes the parent a millisecond; meanwhile its
    place is empty.
    """

    def after_fork(self) -> None:
        super().after_fork()
        if SIG_SOFT_TIMEOUT is not None:
            signal.signal(SIG_SOFT_TIMEOUT, _limit_passed)

    def _ensure_messages_consumed(self, completed: int) -> bool:
        until = time.monotonic() + EXIT_LOOK_TIMEOUT
        while self.on_ready_counter and time.monotonic() < until:
            if self.on_ready_counter.value >= completed:
                return True
            time.sleep(EXIT_LOOK_INTERVAL)
        return bool(super()._ensure_messages_consumed(completed))


def _limit_passed(signum: int, frame: FrameType | None) -> None:
    """billiard.pool.soft_timeout_sighandler, in jobs alone."""
    called: FrameType | None = None
    while frame is not None and frame.f_code is not _WORKLOOP:
        called, frame = frame, frame.f_back
    # What the loop calls besides jobs is its own: reading, writing, waiting.
    module = called.f_globals.get("__name__", "") if called is not None else ""
    if frame is not None and called is not None and not module.startswith(_OF_THE_POOL):
        raise SoftTimeLimitExceeded()


class Pool(asynpool.AsynPool):
    """Celery's pool of such processes, in which no task waits for a process that has exited.

    Three things of Celery's are too slow or come too late (decision 0070): a process's exit is
    noticed by its pipe, which closes before the process can be reaped, and then looked at only
    every five seconds; a process that has done its last task is given one more, which it never
    reads; the pipe of an exited process is read for 20 ms, in which the parent does nothing else.
    """

    Worker = PoolProcess

    def _event_process_exit(self, hub: Hub, proc: Any, wait: float = EXIT_LOOK_INTERVAL) -> None:
        super()._event_process_exit(hub, proc)
        if proc in self._pool and wait < EXIT_TIMEOUT:
            hub.call_later(wait, self._event_process_exit, hub, proc, wait * 2)

    def on_job_ready(self, job: int, i: Any, obj: Any, inqW_fd: int) -> None:
        """A task has ended: its process takes another one, unless it was its last."""
        if not self._retires(self._fileno_to_inq.get(inqW_fd)):
            super().on_job_ready(job, i, obj, inqW_fd)

    def _retires(self, proc: Any) -> bool:
        """Whether the task whose end is being told is the process's last. Not where its memory
        decides that: then a task it was given goes to another process after its exit."""
        counter = proc and self._on_ready_counters.get(proc.pid)
        most = self._maxtasksperchild
        return bool(counter and most and counter.value + 1 >= most)

    def process_flush_queues(self, proc: Any) -> None:
        """Read what an exited process left: all it wrote is there already."""
        reader = proc.outq._reader
        if not reader.closed and reader.poll(0):
            super().process_flush_queues(proc)


class PreforkPool(prefork.TaskPool):
    """Celery's, with that pool."""

    Pool = Pool

    def on_start(self) -> None:
        limit = self.options.get("max_memory_per_child")
        if limit:
            growth = state_of(self.app).memory_growth
            self.options["max_memory_per_child"] = MemoryLimit.of(limit, growth=growth)
        super().on_start()
