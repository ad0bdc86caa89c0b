"""The async port of ``celery.app.trace``: every rule of a task's execution, for coroutines.

The order of signals, states, hooks and callbacks is stock ``trace_task``'s (Celery 5.7).
What differs is where things happen: the body and the signals around it on the loop; results,
publishes and everything about failures in :class:`cloche.aio.writers.Store`, awaited.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from logging import INFO
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, signals, states
from celery.app import trace as stock
from celery.backends.base import Backend
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry
from celery.loaders.base import BaseLoader
from celery.utils.saferepr import saferepr
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.encoding import safe_repr

from cloche.aio import failing, finishing, stacks
from cloche.aio.context import Context, context_of, get_actual_ignore_result
from cloche.aio.run import OUTCOME, Run
from cloche.aio.writers import Store

#: Types whose ``repr`` is short and has no surprises: no need to measure it.
_PLAIN = frozenset({type(None), bool, int, float})
#: States after which ``after_return`` is called.
_FINAL = frozenset({states.SUCCESS, states.FAILURE})


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    ``state`` is Celery's; None where the body left by ``SystemExit`` or the like, and for a
    run that somebody else ended (:attr:`Run.fate`) or that had succeeded before. ``retval``
    is the text of the result, or the ``ExceptionInfo`` where ``info`` (a ``TraceInfo``) says
    that it did not succeed. ``runtime`` is in seconds.
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


def is_coroutine_task(task: Task) -> bool:
    """Whether the tracer can run ``task``: ``@async_task``, or ``@app.task`` on async def."""
    if getattr(task, "coroutine", None) is not None:
        return True
    body = getattr(task, "_orig_run", task.run)
    return inspect.iscoroutinefunction(inspect.unwrap(body))


def build(task: Task, app: Celery, hostname: str, store: Store) -> Trace:
    """``trace(uuid, args, kwargs, request, run=None) -> Outcome`` for ``task``.

    ``request`` is the message's headers with the embedded callbacks, chain and chord (what
    ``celery.app.trace`` calls the request dict). Not decoded here, not acknowledged here.
    Raises ``Reject`` and ``MemoryError`` of hooks as the stock tracer does.
    """
    stacks.install(task)
    return Tracer(task, app, hostname, store).trace


class Tracer:
    """All that is known of a task before any of its runs, and the steps of a run."""

    def __init__(self, task: Task, app: Celery, hostname: str, store: Store) -> None:
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
        self, uuid: str, args: Any, kwargs: Any, request: dict[str, Any], run: Run | None = None
    ) -> Outcome:
        """Run the task once."""
        run = run or Run()
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
        self, uuid: str, args: Any, kwargs: Any, context: Context, run: Run, began: float
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
                if run.settle(OUTCOME):
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
        run: Run,
    ) -> Outcome:
        """Callbacks and the rest of the chain, then the result, then hook, signal and log."""
        task = self.task
        called_back = False
        try:
            if context.callbacks or context.chain:
                await self.store.call(
                    finishing.call_back, self.app, retval, context, self._inherits_priority
                )
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
        self, exc: BaseException, context: Context, run: Run
    ) -> tuple[Outcome | None, Any]:
        """The outcome of a body that raised ``exc``, and what is told as its return value."""
        if isinstance(exc, asyncio.CancelledError) and run.cancelled and run.settle("stopped"):
            raise exc  # the loop is being ended
        if not run.settle(OUTCOME):
            return None, None
        if isinstance(exc, SystemExit | KeyboardInterrupt | GeneratorExit):
            einfo = ExceptionInfo((type(exc), exc, exc.__traceback__))
            return Outcome(None, einfo, None, stock.TraceInfo(states.FAILURE, exc)), None
        if isinstance(exc, asyncio.CancelledError):
            exc = failing.stray_cancellation(self.task, exc)
        failing.trim(exc)
        if failing.retries_by_itself(self.task, exc):
            exc = await self.store.call(failing.autoretry, self.task, exc)
        if isinstance(exc, Reject | Ignore):
            return self._set_aside(exc, context), exc
        if isinstance(exc, Retry):
            einfo = await self.store.call(failing.retried, self.task, context, exc)
            info = stock.TraceInfo(states.RETRY, exc)
            return Outcome(states.RETRY, einfo, None, info), exc
        return await self._fail(context, exc), exc

    async def _fail(self, context: Context, exc: BaseException) -> Outcome:
        failing.trim(exc)
        einfo = await self.store.call(failing.failed, self.task, context, exc)
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
        run: Run,
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
        failing.trim(exc)
        einfo = await self.store.call(failing.internal, self.task, context, uuid, request, exc)
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
            finishing.succeeded_before, self.app, self.task, context, self._inherits_priority
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
    start = getattr(task, "coroutine", None)
    if start is None:
        start = task if _calls_itself(task) else task.run

    def body(args: Any, kwargs: Any) -> Coroutine[Any, Any, Any]:
        coroutine: Coroutine[Any, Any, Any] = start(*args, **kwargs)
        return coroutine

    return body


def _calls_itself(task: Task) -> bool:
    """Whether the task's class has a ``__call__`` of its own.

    ``task_has_custom`` takes the worker's own stack protection for one, which would push the
    request a second time in vain.
    """
    kinds = type(task).__mro__
    return any("__call__" in vars(kind) for kind in kinds[: kinds.index(Task)])


def _own(task: Task, hook: str) -> Callable[..., Any] | None:
    return getattr(task, hook) if stock.task_has_custom(task, hook) else None


def _unless(owner: Any, name: str, base: type) -> Callable[..., Any] | None:
    """``owner.name`` unless it is the do-nothing method of ``base``."""
    bound = getattr(owner, name)
    return None if getattr(bound, "__func__", None) is getattr(base, name) else bound
