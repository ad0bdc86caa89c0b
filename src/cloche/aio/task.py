"""``async def`` as Celery tasks, in every pool."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import celery
from celery import _state
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
        if body is not None and is_coroutine_function(body):
            cls.coroutine = body
            cls.run = _waiting_run(body)


def is_coroutine_function(body: Any) -> bool:
    """Whether calling ``body`` gives a coroutine, also through wrappers of functools."""
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(body, "__func__", body)))


def _waiting_run(body: Any) -> Callable[..., Any]:
    """A method ``run`` that gives what ``body`` returns, with its signature."""

    def run(self: AsyncTask, *args: Any, **kwargs: Any) -> Any:
        body = cast(Callable[..., Any], self.coroutine)
        return run_coroutine(self, functools.partial(body, *args, **kwargs))

    function = getattr(body, "__func__", body)
    # No functools.wraps: for Celery's annotations __wrapped__ is what to call instead.
    run.__name__, run.__doc__, run.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
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
    if not callable(body) or not is_coroutine_function(body):
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

    def register(app: Any) -> None:
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


def _dumping(body: Callable[..., Any], how: dict[str, Any]) -> Callable[..., Any]:
    """``body``, a model it returns made plain: Celery would look at the coroutine instead."""

    @functools.wraps(body)
    async def dumping(*args: Any, **kwargs: Any) -> Any:
        value = await body(*args, **kwargs)
        return (
            value.model_dump(**{"mode": "json", **how}) if isinstance(value, BaseModel) else value
        )

    return dumping
