"""One task handed to the pool by Celery's consumer: what is to be called when."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery import Celery
from kombu.serialization import loads, prepare_accept_content

from cloche.aio.driving import CoroutineRun
from cloche.aio.slots import Slots

#: The pool's names of Celery's callbacks -> the request's methods.
_CALLBACKS = {
    "success": "on_success",
    "accept": "on_accepted",
    "error": "on_failure",
    "timeout": "on_timeout",
}


class JobPid(int):
    """This process's id that also knows the job: all that ``terminate_job`` is given."""

    job: Job


class Job:
    """A task in the pool. Celery keeps it weakly, as the request's ``_apply_result``."""

    #: Whether Celery's callbacks may be called in the loop's thread.
    direct = False

    #: Whether it runs a task; else some function of an extension, whatever that is.
    of_task = True

    def __init__(
        self,
        slots: Slots[Job],
        target: Callable[..., Any],
        message: tuple[Any, ...],
        callbacks: dict[str, Callable[..., Any] | None],
        limits: tuple[float | None, float | None],
        end: Callable[[Job, int | None], object],
    ) -> None:
        self.slots, self.target, self.message = slots, target, message
        self._end = end
        self.kwargs: dict[str, Any] = {}
        self._callbacks = callbacks
        #: Soft and hard limit in seconds.
        self.soft, self.hard = limits
        self.run = CoroutineRun()
        #: How to run the coroutine (:func:`cloche.aio.tracer.build`); None: by ``target``.
        self.trace: Any = None
        self.asyncio_task: asyncio.Task[Any] | None = None
        #: The thread that runs a plain task; None for coroutines and before the start.
        self.thread: int | None = None
        #: The signal of a revoke or cancel.
        self.signum: int | None = None
        #: Whether the body has ended.
        self.ended = False
        #: Whether the slot was given back before that.
        self.vacated = False
        #: Whether the slot was given back: the pool is done with this job.
        self.finished = False
        self._identify()

    def _identify(self) -> None:
        self.name, self.id, self.headers = self.message[0], self.message[1], self.message[2]

    def __repr__(self) -> str:
        return f"{self.name}[{self.id}]"

    @property
    def request(self) -> Any:
        """The ``celery.worker.request.Request`` behind the callbacks, if there is one."""
        return getattr(self._callbacks["accept"], "__self__", None)

    def accept(self) -> None:
        """Tell Celery that the job starts: it acknowledges early tasks and sends the event."""
        pid = JobPid(os.getpid())
        pid.job = self
        self.call("accept", pid, monotonic())

    def vacate(self) -> None:
        """Another one may have the slot."""
        if not self.vacated:
            self.vacated = True
            self.slots.release()

    def over(self) -> None:
        """Its slot was given back."""

    def call(self, which: str, *args: Any) -> None:
        """Call one of Celery's callbacks, if it was given."""
        callback = self._callbacks[which]
        if callback is not None:
            callback(*args)

    def arguments(self, app: Celery) -> tuple[Any, Any, dict[str, Any]]:
        """``args``, ``kwargs`` and the embedded callbacks, chain and chord.

        Celery's request has decoded the body already; without one it is decoded here.
        """
        payload = getattr(self.request, "_payload", None)
        if payload is None:
            body, content_type, encoding = self.message[3:6]
            accept = prepare_accept_content(app.conf.accept_content)
            payload = loads(body, content_type, encoding, accept=accept) if content_type else body
        args, kwargs, embed = payload
        return args, kwargs, embed or {}

    def terminate(self, signum: int | None = None) -> None:
        """Celery's revoke or cancel: end the body, drop the job if it waits."""
        self._end(self, signum)


class FunctionJob(Job):
    """A function that a strategy of an extension (celery-batches) hands to the pool itself."""

    of_task = False

    def _identify(self) -> None:
        self.name, self.id, self.headers = getattr(self.target, "__qualname__", "?"), "", {}

    @property
    def request(self) -> Any:
        """None: the callbacks are the extension's."""
        return None


def terminated(signum: int | None) -> ExceptionInfo:
    """What Celery's request is told about a job that was ended from outside."""
    try:
        raise Terminated(-(signum or 0))
    except Terminated:
        return ExceptionInfo()


class OutOfMemory(Exception):
    """A ``MemoryError`` of one task. Celery's request would take the bare one for its own."""

    def __repr__(self) -> str:
        return f"MemoryError({', '.join(map(repr, self.args))})"


def as_delivered(which: str, told: Any) -> Any:
    """``told`` (for the callback ``which``) as it would come out of a prefork child.

    There pickling has taken the wrapper off the exception. A ``MemoryError`` is replaced:
    it failed one task, not the worker.
    """
    einfo = told if which == "error" else told[1]
    if isinstance(einfo, ExceptionInfo):
        if isinstance(einfo.exception, ExceptionWithTraceback):
            einfo.exception = einfo.exception.exc
        if isinstance(einfo.exception, MemoryError):
            einfo.exception = OutOfMemory(*einfo.exception.args)
    return told


class DirectJob(Job):
    """Made from a :class:`cloche.worker.request.FetchedRequest` instead of callbacks."""

    direct = True

    def __init__(
        self,
        slots: Slots[Job],
        request: Any,
        trace: Any,
        limits: tuple[float | None, float | None],
        end: Callable[[Job, int | None], object],
    ) -> None:
        task, own = request._task, request.time_limits
        self.slots, self.trace, self._end = slots, trace, end
        self.name, self.id, self.headers = request._type, request.id, request._request_dict
        self._request = request
        self.soft = own[1] or task.soft_time_limit or limits[0]
        self.hard = own[0] or task.time_limit or limits[1]
        self.run = CoroutineRun()
        self.asyncio_task = self.thread = self.signum = None
        self.ended = self.finished = self.vacated = False

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
