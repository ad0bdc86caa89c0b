"""A job of the direct path: begun, run and ended in the loop's own thread.

Whatever does not end in plain success ends as every job of the pool does, by Celery's
callbacks in the consumer's thread.
"""

from __future__ import annotations

import os
from time import time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.utils.log import get_logger

from cloche.aio.job import Job, JobPid
from cloche.aio.run import OUTCOME, Run

if TYPE_CHECKING:
    from cloche.aio.lanes import Lane
    from cloche.aio.pool import TaskPool

logger = get_logger("cloche.aio")

#: The pool's names of Celery's callbacks -> the request's methods.
_CALLBACKS = {
    "success": "on_success",
    "accept": "on_accepted",
    "error": "on_failure",
    "timeout": "on_timeout",
}


class DirectJob(Job):
    """Made from a :class:`DirectRequest` instead of callbacks."""

    direct = True

    def __init__(self, pool: TaskPool, lane: Lane, request: Any, trace: Any) -> None:
        task, limits, options = request._task, request.time_limits, pool.options
        self.pool, self.lane, self.trace = pool, lane, trace
        self.name, self.id, self.headers = request._type, request.id, request._request_dict
        self._request = request
        self.soft = limits[1] or task.soft_time_limit or options.get("soft_timeout")
        self.hard = limits[0] or task.time_limit or options.get("timeout")
        self.run = Run()
        self.asyncio_task = self.thread = self.signum = None
        self.ended = self.settled = self.vacated = False

    @property
    def request(self) -> Any:
        """Celery's request."""
        return self._request

    def over(self) -> None:
        """Its slot was given back."""
        self._request.over()

    def call(self, which: str, *args: Any) -> None:
        """Call one of the request's methods."""
        getattr(self._request, _CALLBACKS[which])(*args)

    def arguments(self, app: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Decoded already, what is embedded merged into the headers already."""
        request = self._request
        return request._args, request._kwargs, {}

    # -- the short way, in the loop's thread

    def start(self) -> None:
        """Tell Celery's state that it begins, and begin."""
        pool = self.pool
        pid = JobPid(os.getpid())
        pid.job = self
        self._request.begins(pid, time())
        watchdog = pool.watchdog
        if self.soft or self.hard:
            watchdog.began(self)
        self.run.on_over = self.vacate
        # In a context of its own: it may begin in the turn of another one that has just ended.
        task = self.run.task = pool.loop.create_task(self._run(), context=pool.context.copy())
        watchdog.runs(self, task)

    def vacate(self) -> None:
        """The body is over, its result on its way: another one may have the slot."""
        if not self.vacated:
            self.vacated = True
            self.lane.release()

    async def _run(self) -> None:
        request = self._request
        try:
            outcome = await self.trace(
                self.id, request._args, request._kwargs, self.headers, self.run
            )
        except BaseException as exc:  # noqa: BLE001 (told to Celery's request)
            told = ExceptionInfo((type(exc), exc, exc.__traceback__))
            self.pool._ended(self, "error", told)
            return
        if outcome.state == states.SUCCESS and self.run.fate == OUTCOME:
            self._succeeded(outcome)
        elif outcome.left:
            self.pool._ended(self, "error", outcome.retval)
        else:
            self.pool._ended(self, "success", outcome.message)

    def _succeeded(self, outcome: Any) -> None:
        """The usual end: the pool's ``_ended`` and ``_settle`` in one, without a hand-over."""
        self.ended = True
        pool = self.pool
        pool.watchdog.ended(self)
        if self.settled:
            return
        self.settled = True
        try:
            self._request.on_success(outcome.message)
        except Exception:
            logger.exception("the pool goes on after an error in %r", self)
        finally:
            pool.release(self)
