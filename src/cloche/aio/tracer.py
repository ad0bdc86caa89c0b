"""The async port of ``celery.app.trace``: every rule of a task's execution, for coroutines.

The order of signals, states, hooks and callbacks is stock ``trace_task``'s (Celery 5.7).
What differs is where things happen: the body and the signals around it on the loop; results,
publishes and everything about failures in :class:`cloche.aio.executor.ResultStore`, awaited.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from logging import INFO
from time import monotonic
from typing import Any, TypeVar

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, group, signals, states
from celery.app import trace as stock
from celery.app.task import Context
from celery.backends.base import Backend
from celery.canvas import maybe_signature
from celery.exceptions import BackendGetMetaError, Ignore, InvalidTaskError, Reject, Retry
from celery.loaders.base import BaseLoader
from celery.result import AsyncResult
from celery.states import SUCCESS
from celery.utils.saferepr import saferepr
from celery.utils.time import get_exponential_backoff_interval
from celery.worker.state import successful_requests
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.encoding import safe_repr

from cloche.aio import driving
from cloche.aio import task_stacks as stacks
from cloche.aio.driving import FINISHED, CoroutineRun, stray_cancellation
from cloche.aio.executor import ResultStore
from cloche.worker.request import context_of, get_actual_ignore_result

T = TypeVar("T")

#: Files whose frames are no business of the user's.
_OURS = frozenset({__file__, driving.__file__, driving.__file__.replace("driving", "tracer")})

#: Types whose ``repr`` is short and has no surprises: no need to measure it.
_PLAIN = frozenset({type(None), bool, int, float})

#: States after which ``after_return`` is called.
_FINAL = frozenset({states.SUCCESS, states.FAILURE})


def failed(task: Task, context: Context, exc: BaseException) -> ExceptionInfo:
    """Record a failure: state, chord, chain, errbacks, ``on_failure``, signal, log."""
    info = stock.TraceInfo(states.FAILURE, exc)

    def record() -> ExceptionInfo:
        return info.handle_error_state(task, context, eager=False, call_errbacks=True)

    return _handling(exc, record)


def _handling(exc: BaseException, record: Callable[[], T]) -> T:
    """``record()`` while ``exc`` is being handled, as in Celery's tracer: hooks, receivers and
    ``task.retry`` ask ``sys.exc_info()``.
    """
    try:
        raise exc
    except BaseException:  # noqa: BLE001 (the body's, which is told)
        trim(exc)
        return record()


def retried(task: Task, context: Context, exc: Retry) -> ExceptionInfo:
    """Record a retry: state, ``on_retry``, signal, log."""
    info = stock.TraceInfo(states.RETRY, exc)

    def record() -> ExceptionInfo:
        return info.handle_error_state(task, context, eager=False, call_errbacks=False)

    return _handling(exc, record)


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
        _handling(exc, lambda: task.retry(exc=exc, **options))
    except BaseException as raised:  # noqa: BLE001 (Retry, or exc when there were enough)
        return raised
    return exc


def trim(exc: BaseException) -> None:
    """Take our own frames off the head of the traceback.

    Not only for readers: Celery clears the frames of stored tracebacks, and clearing the
    frame of a suspended coroutine, which the tracer's is by then, would end it.
    """
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename in _OURS:
        tb = tb.tb_next
    exc.__traceback__ = tb


def call_back(app: Celery, retval: Any, context: Context, inherits_priority: bool) -> None:
    """Publish the link callbacks and the next step of the chain."""
    given = {
        "parent_id": context.id,
        "root_id": context.root_id or context.id,
        "priority": _priority(context, inherits_priority),
    }
    callbacks: Sequence[Any] = context.callbacks or ()
    if len(callbacks) > 1:
        _call_all(app, retval, callbacks, given)
    elif callbacks:
        _publish(app, maybe_signature(callbacks[0], app=app), retval, given)
    if context.chain:
        following = maybe_signature(context.chain[-1], app=app)
        _publish(app, following, retval, {"chain": context.chain[:-1], **given})


def _call_all(app: Celery, retval: Any, callbacks: Sequence[Any], given: dict[str, Any]) -> None:
    # Groups store their own trail, so each is called apart (celery/celery#1936).
    all_of_them = [maybe_signature(callback, app=app) for callback in callbacks]
    single = [one for one in all_of_them if not isinstance(one, group)]
    for one in all_of_them:
        if isinstance(one, group):
            _publish(app, one, retval, given)
    if single:
        _publish(app, group(single, app=app), retval, given)


def _publish(app: Celery, signature: Any, retval: Any, given: dict[str, Any]) -> None:
    app.amqp._retry_publish(signature.apply_async, (retval,), **given)


def _priority(context: Context, inherits: bool) -> Any:
    return (context.delivery_info or {}).get("priority") if inherits else None


def succeeded_before(app: Celery, task: Task, context: Context, inherits_priority: bool) -> bool:
    """Whether a redelivered task has succeeded already; its callbacks are made up for."""
    if context.id in successful_requests:
        return True
    result = AsyncResult(context.id, app=app)
    try:
        if result.state != SUCCESS:
            return False
    except BackendGetMetaError:
        return False
    name = stock.get_task_name(context, task.name)
    why = "Task already completed successfully."
    stock.info(stock.LOG_IGNORED, {"id": context.id, "name": name, "description": why})
    try:
        meta = result._get_task_meta()
        if not meta.get("children"):
            call_back(app, meta.get("result"), context, inherits_priority)
        successful_requests.add(context.id)
    except MemoryError:
        raise
    except Exception as exc:
        stock.logger.exception("Failed to dispatch what follows deduplicated task %s", context.id)
        raise Reject(exc, requeue=True) from exc
    return True


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    ``state`` is Celery's; None where the body left by ``SystemExit`` or the like, and for a
    run that somebody else ended (:attr:`CoroutineRun.outcome`) or that had succeeded before.
    ``retval`` is the text of the result, or the ``ExceptionInfo`` where ``info`` (a ``TraceInfo``)
    says that it did not succeed. ``runtime`` is in seconds.
    """

    state: str | None
    retval: Any
    runtime: float | None
    info: Any = None

    @property
    def message(self) -> tuple[int, Any, float | None]:
        """What ``Request.on_success`` takes."""
        return (1 if self.info else 0, self.retval, self.runtime)

    @property
    def left(self) -> bool:
        """Whether the body left by an exception that is none of a task's."""
        return self.state is None and self.info is not None


Trace = Callable[..., Awaitable[Outcome]]


def build(task: Task, app: Celery, hostname: str, store: ResultStore) -> Trace:
    """``trace(uuid, args, kwargs, request, run=None) -> Outcome`` for ``task``, a coroutine task
    that :func:`cloche.worker.unpatched.runs_unpatched`.

    ``request`` is the message's headers with the embedded callbacks, chain and chord (what
    ``celery.app.trace`` calls the request dict). Not decoded here, not acknowledged here.
    Raises ``Reject`` and ``MemoryError`` of hooks as the stock tracer does.
    """
    stacks.install(task)
    return Tracer(task, app, hostname, store).trace


class Tracer:
    """All that is known of a task before any of its runs, and the steps of a run."""

    def __init__(self, task: Task, app: Celery, hostname: str, store: ResultStore) -> None:
        self.task, self.app, self.store = task, app, store
        self._started_meta = {"pid": os.getpid(), "hostname": hostname}
        self._body = _body_of(task)
        self._deduplicates = bool(
            (app.conf.task_acks_late or task.acks_late)
            and app.conf.worker_deduplicate_successful_tasks
            and app.backend.persistent
        )
        self._before_start = _own(task, "before_start")
        self._on_success = _own(task, "on_success")
        self._after_return = _own(task, "after_return")
        self._inherits_priority = app.conf.task_inherit_parent_priority
        self._does_info = stock.logger.isEnabledFor(INFO)
        loader, backend = app.loader, task.backend
        self._init = _unless(loader, "on_task_init", BaseLoader)
        self._cleanup = _unless(loader, "on_process_cleanup", BaseLoader)
        self._backend_cleanup = type(backend).process_cleanup is not Backend.process_cleanup

    async def trace(
        self,
        uuid: str,
        args: Any,
        kwargs: Any,
        request: dict[str, Any],
        run: CoroutineRun | None = None,
    ) -> Outcome:
        run = run or CoroutineRun()
        began = monotonic()
        stacks.current_run.set(run)
        context = None
        try:
            if not hasattr(kwargs, "items"):
                raise InvalidTaskError("Task keyword arguments is not a mapping")
            context = context_of(request, args, kwargs)
            context._protected = 1  # a call of the task from its body is a call like any other
            if self._deduplicates and await self._succeeded_before(uuid, context):
                return Outcome(None, None, None)
            return await self._traced(uuid, args, kwargs, context, run, began)
        except (MemoryError, Reject):
            raise
        except Exception as exc:  # noqa: BLE001 (outside the body: reported, not raised)
            return await self._internal_error(uuid, context, request, exc)

    async def _traced(
        self, uuid: str, args: Any, kwargs: Any, context: Context, run: CoroutineRun, began: float
    ) -> Outcome:
        task = self.task
        outcome: Outcome | None = None
        retval: Any = None
        stacks.enter(task, run, context)
        try:
            if signals.task_prerun.receivers:
                signals.task_prerun.send(
                    sender=task, task_id=uuid, task=task, args=args, kwargs=kwargs
                )
            if self._init:
                self._init(uuid, task)
            ignored = get_actual_ignore_result(task, context)
            if task.track_started and not ignored:
                await self.store.call(self._store_started, uuid, context)
            try:
                if self._before_start:
                    self._before_start(uuid, args, kwargs)
                retval = await run.drive(self._body(args, kwargs))
            except BaseException as exc:  # noqa: BLE001 (each kind has its own ending)
                outcome, retval = await self._ended_badly(exc, context, run)
            else:
                if run.decide(FINISHED):
                    outcome = await self._ended_well(uuid, retval, context, not ignored, began, run)
                    if outcome.state != states.SUCCESS:
                        retval = outcome.info.retval
            if outcome is None:  # a revoke, a hard limit or the worker's end came first
                return Outcome(None, None, None)
            if self._after_return and outcome.state in _FINAL:
                self._guarded(self._after_return, outcome.state, retval, uuid, args, kwargs, None)
            return outcome
        finally:
            self._leave(uuid, args, kwargs, outcome, retval, run)

    async def _ended_well(
        self,
        uuid: str,
        retval: Any,
        context: Context,
        publish: bool,
        began: float,
        run: CoroutineRun,
    ) -> Outcome:
        """Callbacks and the rest of the chain, then the result, then hook, signal and log."""
        task = self.task
        called_back = False
        try:
            if context.callbacks or context.chain:
                await self.store.call(call_back, self.app, retval, context, self._inherits_priority)
            called_back = True
            if publish or context.chord:
                if run.on_over is not None:
                    run.on_over()
                await self.store.done(task, context, retval, publish)
        except (EncodeError, OperationalError) as exc:
            if called_back and isinstance(exc, OperationalError):
                raise
            return await self._fail(context, exc)
        text = repr(retval) if type(retval) in _PLAIN else saferepr(
            retval, task.resultrepr_maxsize
        )  # fmt: skip
        runtime = monotonic() - began
        if self._on_success:
            self._guarded(self._on_success, retval, uuid, context.args, context.kwargs)
        if signals.task_success.receivers:
            signals.task_success.send(sender=task, result=retval, runtime=runtime)
        if self._does_info:
            self._log_success(uuid, context, text, runtime)
        return Outcome(states.SUCCESS, text, runtime)

    async def _ended_badly(
        self, exc: BaseException, context: Context, run: CoroutineRun
    ) -> tuple[Outcome | None, Any]:
        """The outcome of a body that raised ``exc``, and what is told as its return value."""
        if isinstance(exc, asyncio.CancelledError) and run.cancelled and run.decide("stopped"):
            raise exc  # the loop is being ended
        if not run.decide(FINISHED):
            return None, None
        if isinstance(exc, SystemExit | KeyboardInterrupt | GeneratorExit):
            einfo = ExceptionInfo((type(exc), exc, exc.__traceback__))
            return Outcome(None, einfo, None, stock.TraceInfo(states.FAILURE, exc)), None
        if isinstance(exc, asyncio.CancelledError):
            exc = stray_cancellation(self.task, exc)
        trim(exc)
        if retries_by_itself(self.task, exc):
            exc = await self.store.call(autoretry, self.task, exc)
        if isinstance(exc, Reject | Ignore):
            return self._set_aside(exc, context), exc
        if isinstance(exc, Retry):
            einfo = await self.store.call(retried, self.task, context, exc)
            info = stock.TraceInfo(states.RETRY, exc)
            return Outcome(states.RETRY, einfo, None, info), exc
        return await self._fail(context, exc), exc

    async def _fail(self, context: Context, exc: BaseException) -> Outcome:
        trim(exc)
        einfo = await self.store.call(failed, self.task, context, exc)
        stock.traceback_clear(exc)
        return Outcome(states.FAILURE, einfo, None, stock.TraceInfo(states.FAILURE, exc))

    def _set_aside(self, exc: Reject | Ignore, context: Context) -> Outcome:
        """``Reject`` or ``Ignore`` out of the body: logged, no state stored."""
        state = states.REJECTED if isinstance(exc, Reject) else states.IGNORED
        info = stock.TraceInfo(state, exc)
        einfo = ExceptionInfo((type(exc), exc, exc.__traceback__), internal=True)
        info._log_error(self.task, context, ExceptionInfo((type(exc), exc, exc.__traceback__)))
        stock.traceback_clear(exc)
        return Outcome(state, einfo, None, info)

    def _leave(
        self,
        uuid: str,
        args: Any,
        kwargs: Any,
        outcome: Outcome | None,
        retval: Any,
        run: CoroutineRun,
    ) -> None:
        task = self.task
        try:
            if signals.task_postrun.receivers:
                state = outcome.state if outcome is not None else None
                signals.task_postrun.send(
                    sender=task, task_id=uuid, task=task, args=args, kwargs=kwargs,
                    retval=retval, state=state,
                )  # fmt: skip
        finally:
            stacks.leave(task, run)
            try:
                if self._backend_cleanup:
                    task.backend.process_cleanup()
                if self._cleanup:
                    self._cleanup()
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except Exception as exc:  # noqa: BLE001 (as stock: logged, the task is over)
                stock.logger.exception("Process cleanup failed: %r", exc)

    async def _internal_error(
        self, uuid: str, context: Context | None, request: dict[str, Any], exc: Exception
    ) -> Outcome:
        trim(exc)
        einfo = await self.store.call(internal, self.task, context, uuid, request, exc)
        info = stock.TraceInfo(states.FAILURE, exc) if context is not None else None
        return Outcome(states.FAILURE, einfo, None, info)

    def _guarded(self, hook: Callable[..., Any], *args: Any) -> None:
        """A hook after the outcome is stored: it cannot make the task fail any more."""
        try:
            hook(*args)
        except (Reject, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 (logged below)
            name = getattr(hook, "__name__", "")
            stock.logger.exception("Task %s %s handler raised: %r", self.task.name, name, exc)
            stock.traceback_clear(exc)

    def _store_started(self, uuid: str, context: Context) -> None:
        meta = self._started_meta
        self.task.backend.store_result(uuid, meta, states.STARTED, request=context)

    async def _succeeded_before(self, uuid: str, context: Context) -> bool:
        if not (context.delivery_info and context.delivery_info.get("redelivered", False)):
            return False
        done: bool = await self.store.call(
            succeeded_before, self.app, self.task, context, self._inherits_priority
        )
        return done

    def _log_success(self, uuid: str, context: Context, text: str, runtime: float) -> None:
        stock.info(stock.LOG_SUCCESS, {
            "id": uuid,
            "name": stock.get_task_name(context, self.task.name),
            "return_value": text,
            "runtime": runtime,
            "args": context.get("argsrepr") or safe_repr(context.args),
            "kwargs": context.get("kwargsrepr") or safe_repr(context.kwargs),
        })  # fmt: skip


def _body_of(task: Task) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
    """``(args, kwargs) -> coroutine`` of the task's body."""
    start = getattr(task, "coroutine", None) or task.run

    def body(args: Any, kwargs: Any) -> Coroutine[Any, Any, Any]:
        coroutine: Coroutine[Any, Any, Any] = start(*args, **kwargs)
        return coroutine

    return body


def _own(task: Task, hook: str) -> Callable[..., Any] | None:
    return getattr(task, hook) if stock.task_has_custom(task, hook) else None


def _unless(owner: Any, name: str, base: type) -> Callable[..., Any] | None:
    """``owner.name`` unless it is the do-nothing method of ``base``."""
    bound = getattr(owner, name)
    return None if getattr(bound, "__func__", None) is getattr(base, name) else bound
