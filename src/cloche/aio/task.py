"""``async def`` as Celery tasks, in every pool."""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from inspect import getattr_static
from types import MethodType
from typing import Any, cast

import celery
from celery import Celery, _state
from celery.local import Proxy
from pydantic import BaseModel

from cloche.aio.bridge import run_coroutine
from cloche.aio.sending import AsyncSending
from cloche.errors import CoroutineTaskError

#: What :func:`async_task` takes, all of it Celery's: celery.app.base.Celery.task and
#: _task_from_fun, celery.app.autoretry, and the attributes of celery.app.task.Task.
OPTIONS = frozenset(
    {
        *("name", "base", "bind", "queue", "exchange", "routing_key", "priority", "expires"),
        *("Request", "Strategy"),
        *("serializer", "typing", "rate_limit", "send_events", "resultrepr_maxsize", "trail"),
        *("max_retries", "default_retry_delay", "autoretry_for", "dont_autoretry_for"),
        *("retry_kwargs", "retry_backoff", "retry_backoff_max", "retry_jitter", "throws"),
        *("time_limit", "soft_time_limit", "track_started", "ignore_result", "backend"),
        *("store_eager_result", "store_errors_even_if_ignored", "acks_late", "acks_on_failure"),
        *("acks_on_timeout", "acks_on_failure_or_timeout", "reject_on_worker_lost"),
        *("retry_on_worker_lost", "shadow_name", "before_start", "after_return"),
        *("on_success", "on_failure", "on_retry", "on_replace"),
        *("pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs"),
    }
)


class AsyncTask(AsyncSending, celery.Task):
    """Celery's task, whose body may be a coroutine function.

    Such a task has a :attr:`coroutine`; its ``run`` waits for it on the process's loop, so it
    works in pools, and in ``apply()``, that know nothing of coroutines. A plain ``def`` stays
    what it is, and can be sent with ``await task.adelay(...)`` all the same.
    """

    abstract = True
    #: ``coroutine(*args, **kwargs)``: the un-started coroutine of the body; None of a plain task.
    coroutine: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        body = cls.__dict__.get("run")
        if body is None:
            return
        if is_coroutine_function(body):
            cls.coroutine = body
            cls.run = _waiting_run(body)
        elif _may_give_coroutine(body):
            cls.run = _either_run(body)
        if is_coroutine_function(cls.__call__):
            cls.__call__ = _waiting_call(cls.__call__)


#: The task whose ``__call__`` is a coroutine and is about to call ``run``, which it awaits.
_awaited: ContextVar[Any] = ContextVar("cloche_awaited", default=None)


def is_coroutine_function(body: Any) -> bool:
    """Whether calling ``body`` is known to give a coroutine.

    A plain function around an ``async def`` is a plain function, whatever ``functools.wraps``
    says of it: most of them run the coroutine themselves.
    """
    function = getattr(body, "__func__", body)
    if inspect.iscoroutinefunction(function) or _is_marked(function):
        return True
    of_objects = getattr_static(type(function), "__call__", None)
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(of_objects)


def _is_marked(function: Any) -> bool:
    """``inspect.markcoroutinefunction`` of Python 3.12, and what asgiref has before it."""
    mark = getattr(asyncio.coroutines, "_is_coroutine", None)
    return mark is not None and getattr(function, "_is_coroutine", None) is mark


def _may_give_coroutine(body: Any) -> bool:
    """Whether ``body`` is a plain function around an ``async def``."""
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(body, "__func__", body)))


def adopt(task: celery.Task) -> None:
    """Have ``run`` of a bare ``async def`` task wait for its coroutine, as that of an AsyncTask.

    In a worker whose pool runs coroutines, before instrumentation wraps ``run``.
    """
    retried = "_orig_run" in vars(task)  # celery.app.autoretry has wrapped it
    bound = task._orig_run if retried else task.run
    body = bound.__func__ if inspect.ismethod(bound) else staticmethod(bound)
    if getattr(task, "coroutine", None) is not None:
        return
    if is_coroutine_function(bound):
        task.coroutine, run = bound, _waiting_run(body)
    elif _may_give_coroutine(bound):
        run = _either_run(body)
    else:
        return
    setattr(task, "_orig_run" if retried else "run", MethodType(run, task))
    if is_coroutine_function(type(task).__call__):
        type(task).__call__ = _waiting_call(type(task).__call__)


def _waiting_run(body: Any) -> Callable[..., Any]:
    """A method ``run`` that gives what ``body`` returns, with its signature."""

    def run(self: AsyncTask, *args: Any, **kwargs: Any) -> Any:
        body = cast(Callable[..., Any], self.coroutine)
        if _awaited.get() is self:
            _awaited.set(None)
            return body(*args, **kwargs)
        return run_coroutine(self, functools.partial(body, *args, **kwargs))

    run.cloche_waits = run  # type: ignore[attr-defined]  # see cloche.worker.unpatched
    return _described(run, body)


def _either_run(body: Any) -> Callable[..., Any]:
    """A method ``run`` for a plain function that may return a coroutine: it is waited for."""
    function, static = getattr(body, "__func__", body), isinstance(body, staticmethod)

    def run(self: AsyncTask, *args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs) if static else function(self, *args, **kwargs)
        return run_coroutine(self, lambda: value) if inspect.iscoroutine(value) else value

    return _described(run, body)


def _waiting_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """A method ``__call__`` that waits for the coroutine of ``call``."""

    def __call__(self: AsyncTask, *args: Any, **kwargs: Any) -> Any:
        return run_coroutine(self, functools.partial(_calling, call, self, args, kwargs))

    return __call__


async def _calling(call: Callable[..., Any], task: Any, args: Any, kwargs: Any) -> Any:
    _awaited.set(task)
    return await call(task, *args, **kwargs)


def _described(run: Callable[..., Any], body: Any) -> Callable[..., Any]:
    """``run`` with name, text and signature of ``body``, a function or a staticmethod.

    No functools.wraps: for Celery's annotations __wrapped__ is what to call instead.
    """
    function = getattr(body, "__func__", body)
    for name in ("__name__", "__doc__", "__module__"):
        setattr(run, name, getattr(function, name, None) or getattr(run, name))
    signature = inspect.signature(function)
    if isinstance(body, staticmethod):
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = signature.replace(parameters=[itself, *signature.parameters.values()])
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def async_task(
    function: Callable[..., Any] | None = None,
    *,
    app: celery.Celery | None = None,
    **options: Any,
) -> Any:
    """Make an ``async def`` a task: of ``app``, or of every application, as ``shared_task`` does.

    ``options`` are those of ``app.task``. Raises CoroutineTaskError for one that Celery does
    not know, and for a function that is no ``async def``.
    """
    _check_options(options, OPTIONS if app is None else OPTIONS | {"shared", "lazy"})

    def decorate(body: Callable[..., Any]) -> Any:
        _check_body(body)
        if not is_coroutine_function(body):
            body = _awaiting(body)
        if options.get("pydantic"):
            body = _dumping(body, options.get("pydantic_dump_kwargs") or {})
        if app is not None:
            return app.task(**_for_app(app, options))(body)
        return _shared(body, options)

    return decorate if function is None else decorate(function)


def _check_options(options: dict[str, Any], known: frozenset[str]) -> None:
    base = options.get("base")
    for name in options:
        if name in known or (base is not None and hasattr(base, name)):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        raise CoroutineTaskError(
            f"async_task has no option {name!r}",
            why="Celery would keep it as an attribute of the task that nobody reads",
            fix=f"did you mean {near[0]!r}?" if near else "options are those of app.task",
        )


def _check_body(body: Any) -> None:
    if type(body) is Proxy or isinstance(body, celery.Task):
        raise CoroutineTaskError(
            "async_task was applied to something that is a task already",
            fix="remove the other decorator: async_task replaces app.task and shared_task",
        )
    if not callable(body) or not (is_coroutine_function(body) or _may_give_coroutine(body)):
        name = getattr(body, "__qualname__", repr(body))
        raise CoroutineTaskError(
            f"async_task needs an async def, and {name} is none",
            why="a plain function would block the event loop that all coroutine tasks share",
            fix=f"write `async def {name}`, or decorate it with @app.task or @shared_task",
        )


def _for_app(app: celery.Celery, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with the base class: ours, and what the application has for its tasks."""
    left = dict(options)
    base = left.pop("base", None) or app.Task
    if not issubclass(base, AsyncTask):
        base = type("AsyncTask", (AsyncTask, base), {"abstract": True})
    # Celery 5.7 warns of a queue among a task's own attributes (Task.bind), since 6.0 is to
    # ignore them there. An inherited one is as good and says so once.
    routing: dict[str, Any] = {
        name: left.pop(name)
        for name in ("queue", "exchange", "routing_key", "priority")
        if name in left
    }
    if routing:
        base = type("RoutedTask", (base,), {"abstract": True, **routing})
    return {**left, "base": base}


def _shared(body: Callable[..., Any], options: dict[str, Any]) -> Any:
    """As celery.shared_task, with a base class made for each application."""

    def register(app: Celery) -> None:
        app._task_from_fun(body, **_for_app(app, options))

    _state.connect_on_app_finalize(register)
    for app in _state._get_active_apps():
        if app.finalized:
            with app._finalize_mutex:
                register(app)

    def of_current_app() -> Any:
        app = _state.get_current_app()
        name = options.get("name") or app.gen_task_name(body.__name__, body.__module__)
        return app.tasks[name]

    return Proxy(of_current_app)


def _awaiting(body: Callable[..., Any]) -> Callable[..., Any]:
    """``body``, a function that gives the coroutine it wraps, as an ``async def``."""

    @functools.wraps(body)
    async def awaiting(*args: Any, **kwargs: Any) -> Any:
        value = body(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return awaiting


def _dumping(body: Callable[..., Any], how: dict[str, Any]) -> Callable[..., Any]:
    """``body``, a model it returns made plain: Celery would look at the coroutine instead."""

    @functools.wraps(body)
    async def dumping(*args: Any, **kwargs: Any) -> Any:
        value = await body(*args, **kwargs)
        return (
            value.model_dump(**{"mode": "json", **how}) if isinstance(value, BaseModel) else value
        )

    return dumping


def is_coroutine_task(task: celery.Task) -> bool:
    """Whether the body of ``task`` runs as a coroutine."""
    return getattr(task, "coroutine", None) is not None


def runs_coroutines(task: celery.Task) -> bool:
    """Whether the asyncio pool would run ``task`` as a coroutine, a bare ``async def`` too."""
    # The class's: celery.app.autoretry and instrumentation wrap the one of the task itself.
    return is_coroutine_task(task) or is_coroutine_function(type(task).run)


def unawaited(tasks: Iterable[celery.Task]) -> Iterator[str]:
    """Names of tasks whose ``async def`` nobody would await.

    Celery takes the coroutine object for the result: the task "succeeds" without having run.
    """
    for task in tasks:
        if runs_coroutines(task) and not is_coroutine_task(task):
            yield task.name


def refuse_unawaited(tasks: Iterable[celery.Task]) -> None:
    """Raises CoroutineTaskError that names the :func:`unawaited` of ``tasks``, if any."""
    names = sorted(unawaited(tasks))
    if not names:
        return
    verb = (
        "is an async def that Celery would not await"
        if len(names) == 1
        else ("are async defs that Celery would not await")
    )
    raise CoroutineTaskError(
        f"{', '.join(names)} {verb}",
        why="a plain Celery task takes the coroutine for its result, and the body never runs",
        fix="declare with @cloche.async_task instead of @app.task or @shared_task, "
        "or use the asyncio pool",
    )
