"""How runs end badly: Celery's own code for failures, retries and internal errors.

All of it may store, publish and call the user's handlers, so a tracer has it called off the
loop (:meth:`cloche.aio.writers.Store.call`).
"""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Task, signals, states
from celery.app import trace as stock
from celery.app.task import Context
from celery.exceptions import Ignore, Retry
from celery.utils.time import get_exponential_backoff_interval

from cloche.aio import driving
from cloche.errors import TaskCancelledError

#: Files whose frames are no business of the user's.
_OURS = frozenset({__file__, driving.__file__, driving.__file__.replace("driving", "tracer")})


def failed(task: Task, context: Context, exc: BaseException) -> ExceptionInfo:
    """Record a failure: state, chord, chain, errbacks, ``on_failure``, signal, log."""
    info = stock.TraceInfo(states.FAILURE, exc)
    return info.handle_error_state(task, context, eager=False, call_errbacks=True)


def retried(task: Task, context: Context, exc: Retry) -> ExceptionInfo:
    """Record a retry. Stock ``TraceInfo.handle_retry``, but the exception is passed in."""
    einfo = ExceptionInfo((type(exc), exc, exc.__traceback__))
    if stores_errors(task, context):
        task.backend.mark_as_retry(context.id, exc.exc, einfo.traceback, request=context)
    task.on_retry(exc.exc, context.id, context.args, context.kwargs, einfo)
    signals.task_retry.send(sender=task, request=context, reason=exc, einfo=einfo)
    name = stock.get_task_name(context, task.name)
    stock.info(stock.LOG_RETRY, {"id": context.id, "name": name, "exc": str(exc)})
    stock.traceback_clear(einfo.exception)
    return einfo


def internal(
    task: Task, context: Context | None, uuid: str, request: Any, exc: Exception
) -> ExceptionInfo:
    """Report an error outside the body, as stock ``trace_task`` does."""
    args, kwargs = request.get("args"), request.get("kwargs")
    try:
        raise exc
    except Exception as error:  # noqa: BLE001 (Celery reads it from sys.exc_info)
        stock._signal_internal_error(task, uuid, args, kwargs, request, error)
        einfo = stock.report_internal_error(task, error)
        if context is not None:
            failed(task, context, error)
    return einfo


def stores_errors(task: Task, context: Context) -> bool:
    """Whether a failure's state is stored, given the request's wish and the task's."""
    if stock.get_actual_ignore_result(task, context):
        return bool(task.store_errors_even_if_ignored)
    return True


def retries_by_itself(task: Task, exc: BaseException) -> bool:
    """Whether ``autoretry_for`` covers ``exc``."""
    wanted = tuple(getattr(task, "autoretry_for", ()) or ())
    unwanted = tuple(getattr(task, "dont_autoretry_for", ()) or ())
    return (
        bool(wanted) and isinstance(exc, wanted) and not isinstance(exc, (Ignore, Retry, *unwanted))
    )


def autoretry(task: Task, exc: BaseException) -> BaseException:
    """Retry as ``celery.app.autoretry`` does; what is then raised instead of ``exc``."""
    options = dict(getattr(task, "retry_kwargs", {}))
    backoff = float(getattr(task, "retry_backoff", False))
    if backoff:
        options["countdown"] = get_exponential_backoff_interval(
            factor=int(max(1.0, backoff)),
            retries=task.request.retries,
            maximum=int(getattr(task, "retry_backoff_max", 600)),
            full_jitter=getattr(task, "retry_jitter", True),
        )
    if hasattr(task, "override_max_retries"):
        options["max_retries"] = task.override_max_retries
    try:
        task.retry(exc=exc, **options)
    except BaseException as raised:  # noqa: BLE001 (Retry, or exc when there were enough)
        return raised
    return exc


def stray_cancellation(task: Task, exc: BaseException) -> TaskCancelledError:
    """A cancellation that nobody asked for, as the failure of this one task."""
    failure = TaskCancelledError(
        f"the body of {task.name} ended with CancelledError",
        why="what it awaited was cancelled",
    )
    failure.__cause__ = exc
    return failure.with_traceback(exc.__traceback__)


def trim(exc: BaseException) -> None:
    """Take our own frames off the head of the traceback.

    Not only for readers: Celery clears the frames of stored tracebacks, and clearing the
    frame of a suspended coroutine, which the tracer's is by then, would end it.
    """
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename in _OURS:
        tb = tb.tb_next
    exc.__traceback__ = tb
