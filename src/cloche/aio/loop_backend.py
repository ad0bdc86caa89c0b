"""The result backend of the loop's thread, for Celery's tracer when it runs there.

Celery's tracer (:meth:`cloche.aio.pool.TaskPool._run_nested`) stores synchronously. Here the
storing happens in a writer's thread, as with our own tracer, while the tracer's greenlet waits and
the loop goes on. What a body stores itself (``update_state``) stays where it is: between two
awaits nothing else of the loop runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from cloche.aio import task_stacks as stacks
from cloche.aio.bridge import can_wait_here, wait_here
from cloche.aio.driving import CoroutineRun


def use(app: Celery) -> None:
    """Have ``app.backend`` of this thread, the loop's, be one. Again is harmless."""
    backend: Any = app.backend
    if not isinstance(backend, LoopBackend):
        kind = type(backend)
        backend.__class__ = type(
            kind.__name__, (LoopBackend, kind), {"__module__": kind.__module__}
        )


def _stored(name: str) -> Callable[..., Any]:
    """The backend's method ``name``, called in a writer's thread where a tracer calls it."""

    def store(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = stacks.current_run.get()
        if isinstance(run, CoroutineRun) and run.writers and not run.in_body and can_wait_here():
            return wait_here(run.writers.call(_there, self.app, name, args, kwargs))
        return getattr(super(LoopBackend, self), name)(*args, **kwargs)

    store.__name__ = name
    return store


class LoopBackend:
    """Put before the class of an application's backend."""

    store_result = _stored("store_result")
    mark_as_done = _stored("mark_as_done")
    mark_as_failure = _stored("mark_as_failure")
    mark_as_retry = _stored("mark_as_retry")


def _there(app: Celery, name: str, args: Any, kwargs: Any) -> Any:
    """With the backend of the writer's thread."""
    return getattr(app.backend, name)(*args, **kwargs)
