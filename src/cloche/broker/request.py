"""What Celery's worker knows of a message while it works on it.

A pool process that died with a task: the message goes back, counted; the third is the last.

Celery would put such a message back without end (``task_reject_on_worker_lost``), or publish a
retry of it (``task_retry_on_worker_lost``); see celery/worker/request.py, ``Request.on_failure``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery import signals
from celery.exceptions import InvalidTaskError
from celery.worker import request as stock

from cloche.broker.channel import Channel
from cloche.broker.connection.outage import ERRORS, plain
from cloche.broker.lease.lease import field_of
from cloche.broker.lease.reaper import Reaper

logger = logging.getLogger("cloche.transport")


class Request(stock.Request):
    """Celery's request. ``Task.Request`` names it once Cloche's transport is in use."""

    #: The direct path may begin it without :meth:`on_accepted`: it asks for doubts itself.
    begins_directly = True

    #: Whether its process died.
    lost = False
    #: Whether the message became a dead letter.
    buried = False
    acknowledged: bool

    def __init__(self, message: Any, **options: Any) -> None:
        try:
            super().__init__(message, **options)
        except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Celery's worker would end of it, and the next one, too.
            raise InvalidTaskError(f"{type(error).__name__}: {error}") from error

    def on_failure(
        self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """The task failed, or its process died."""
        self.lost = _is_lost(exc_info)
        counted = self.lost and self._counted
        # With return_ok Celery writes no traceback, which would be the pool's, not the task's.
        found = super().on_failure(exc_info, send_failed_event, return_ok or counted)
        if counted:
            logger.error("%s[%s]: %s", self.task.name, self.id, _bare(exc_info))
        if self.buried and not self.task.retry_on_worker_lost:
            lost = isinstance(_bare(exc_info), WorkerLostError)
            self._fail(exc_info if lost else self._worker_lost_info(_bare(exc_info)))
        return found

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The body is about to run; in pools of this process it waits for this to return."""
        channel = self.message.channel
        if pid == os.getpid() and isinstance(channel, Channel):
            channel.wait_if_doubtful()
        super().on_accepted(pid, time_accepted)

    @property
    def _counted(self) -> bool:
        """Whether the message comes back when its process dies, and we count."""
        task = self.task
        wanted = task.acks_late and (task.reject_on_worker_lost or task.retry_on_worker_lost)
        return bool(wanted) and isinstance(self.message.channel, Channel)

    def reject(self, requeue: bool = False) -> None:
        """Give the message back, or make a dead letter of it."""
        channel = self.message.channel
        if not (requeue and self.lost and isinstance(channel, Channel)):
            super().reject(requeue)
        elif not self.acknowledged:
            self._bring_back(channel)

    def _retry_worker_lost(self, exc: BaseException, exc_info: ExceptionInfo) -> bool:
        """Whether the task is tried again; if not, Celery makes it a failure."""
        channel = self.message.channel
        if not (self._counted and not self.acknowledged):
            return bool(super()._retry_worker_lost(exc, exc_info))
        self._bring_back(channel)
        return not self.buried

    def _bring_back(self, channel: Channel) -> None:
        limit = channel.max_deliveries
        if self.task.retry_on_worker_lost and self.task.max_retries is not None:
            limit = min(limit, self.task.max_retries + 1)
        self.buried = not _bring_back(channel, self.message, self.worker_pid, limit)
        self.acknowledged = True
        self.send_event("task-rejected", requeue=not self.buried)

    def _fail(self, info: ExceptionInfo) -> None:
        """What Celery does with a task whose process is lost and that does not come back."""
        error = _bare(info)
        self.task.backend.mark_as_failure(
            self.id, error, request=self._context, store_result=self.store_errors
        )
        signals.task_failure.send(
            sender=self.task,
            task_id=self.id,
            exception=error,
            args=self.args,
            kwargs=self.kwargs,
            traceback=info.traceback,
            einfo=info,
        )
        self.send_event("task-failed", exception=repr(error), traceback=info.traceback)


def _bring_back(channel: Channel, message: Any, pid: int | None, limit: int) -> bool:
    """Whether it went back to its queue; False if that was death ``limit``: a dead letter."""
    tag = message.delivery_tag
    lease = channel.own_lease
    consumer, field = field_of(tag)
    back = True
    try:
        if lease.holds(tag):
            (raw,) = channel.texts(lease, [field])
            if raw is not None:
                reaper = Reaper(channel.own, channel.keys, limit)
                who = f"{consumer}:child:{pid}"
                back = bool(reaper.bring_back(lease.inflight, who, field, raw))
            lease.let_go([field])
        else:
            lease.tell_late(1)
    except ERRORS as error:
        logger.warning("a lost process' message goes back later: %s", plain(error))
        lease.adopt(tag, message)  # the lease keeper's, as soon as nobody here has it
    channel.qos.forget(tag)
    return back


def _is_lost(exc_info: ExceptionInfo) -> bool:
    # SystemExit is what billiard reports of a process that ends itself within a task.
    return isinstance(_bare(exc_info), WorkerLostError | SystemExit | KeyboardInterrupt)


def _bare(exc_info: ExceptionInfo) -> BaseException:
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error
