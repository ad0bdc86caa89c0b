"""Whether Celery's functions are Celery's own: instrumentation and extensions replace them.

Sentry, New Relic and the like wrap what Celery runs a task with. What we do in its place, faster,
must then step aside. A function is told from what replaced it by the module its code looks names
up in; a reference kept from before would be one to the replacement if that came first.
"""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Any

from celery import Task, bootsteps
from celery.app import autoretry, trace
from celery.app import task as task_module
from celery.concurrency import base as pools
from celery.worker import request, state, strategy, worker
from celery.worker.consumer import Consumer, consumer

#: Methods of Celery's request that a worker calls around a task.
_REQUEST = ("__init__", "execute_using_pool", "on_accepted", "on_success", "on_timeout")

#: (module, a name in it, the module it is imported from)
_IMPORTED = (
    (consumer, "build_tracer", trace),
    (strategy, "create_request_cls", request),
    (strategy, "task_reserved", state),
)


def defined_in(function: Any, *modules: ModuleType) -> bool:
    """Whether ``function`` was written in one of ``modules``, and is not a wrapper's."""
    return (
        type(function) is FunctionType
        and not hasattr(function, "__wrapped__")
        and any(function.__globals__ is vars(module) for module in modules)
    )


def worker_is_unpatched() -> bool:
    """Whether the worker's own steps from a message to the pool are Celery's."""
    return (
        defined_in(strategy.default, strategy)
        and defined_in(strategy.create_request_cls, request)
        and defined_in(strategy.task_reserved, state)
        and defined_in(consumer.Consumer.create_task_handler, consumer)
        and defined_in(worker.WorkController._process_task, worker)
        and defined_in(pools.BasePool.apply_async, pools)
        and all(defined_in(vars(request.Request)[name], request) for name in _REQUEST)
        and tracing_is_unpatched()
    )


def tracing_is_unpatched() -> bool:
    """Whether the functions with which a pool runs a task are Celery's."""
    return (
        defined_in(trace.build_tracer, trace)
        and defined_in(consumer.build_tracer, trace)
        and all(map(is_target, (request.fast_trace_task, request.trace_task_ret)))
    )


def is_target(function: Any) -> bool:
    """Whether it is Celery's function that runs a task in a pool, as Celery wrote it."""
    return defined_in(function, trace)


def runs_unpatched(task: Task) -> bool:
    """Whether nothing stands between Celery's tracer and the body of ``task``, a coroutine task:
    no ``__call__`` of its class, no wrapper around its tracer or its ``run``."""
    tracer = task.__trace__
    return (
        tracing_is_unpatched()
        and (tracer is None or defined_in(tracer, trace))
        and _called_plainly(task)
        and _waits_itself(task)
    )


def _called_plainly(task: Task) -> bool:
    """Celery's own ``__call__`` is the one of Task, or the worker's protection of its stack."""
    kind = next(kind for kind in type(task).__mro__ if "__call__" in vars(kind))
    return kind is Task and defined_in(vars(kind)["__call__"], task_module, trace)


def _waits_itself(task: Task) -> bool:
    """Whether ``run`` is the one that waits for the coroutine (:mod:`cloche.aio.task`)."""
    run = task.run
    if getattr(run, "__globals__", None) is vars(autoretry):
        run = task._orig_run
    function = getattr(run, "__func__", run)
    # A wrapper by functools.wraps has a copy of the mark.
    return getattr(function, "cloche_waits", None) is function


class ImportStep(bootsteps.Step):
    """Made with the consumer, before it asks for tracers and strategies."""

    name = "cloche.worker.unpatched.ImportStep"

    def create(self, consumer: Consumer) -> None:
        """Import again what nobody has replaced in Celery's modules themselves."""
        for module, name, origin in _IMPORTED:
            if defined_in(getattr(module, name), origin):
                setattr(module, name, getattr(origin, name))
