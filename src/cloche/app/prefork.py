"""The prefork pool of ``cloche worker``: a process that has done its tasks ends without delay."""

from __future__ import annotations

import time

from celery.concurrency import asynpool, prefork

#: Seconds within which the parent has usually read the last outcome, and between looks.
SOON = 0.2
LOOK = 0.002


class Worker(asynpool.Worker):
    """Celery's process of a pool.

    After its last task (``worker_max_tasks_per_child``) billiard's sleeps 0.1 s before it looks
    whether the parent has read the outcome, which takes the parent a millisecond; meanwhile its
    place is empty.
    """

    def _ensure_messages_consumed(self, completed: int) -> bool:
        until = time.monotonic() + SOON
        while self.on_ready_counter and time.monotonic() < until:
            if self.on_ready_counter.value >= completed:
                return True
            time.sleep(LOOK)
        return bool(super()._ensure_messages_consumed(completed))


class Pool(asynpool.AsynPool):
    """Celery's pool of such processes."""

    Worker = Worker


class TaskPool(prefork.TaskPool):
    """Celery's, with that pool."""

    Pool = Pool
