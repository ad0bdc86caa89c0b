"""Which tasks are coroutines, and which only look so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import celery

from cloche.aio.task import is_coroutine_function
from cloche.errors import CoroutineTaskError


def is_coroutine_task(task: celery.Task) -> bool:
    """Whether the body of ``task`` runs as a coroutine."""
    return getattr(task, "coroutine", None) is not None


def runs_coroutines(task: celery.Task) -> bool:
    """Whether the asyncio pool would run ``task`` as a coroutine, a bare ``async def`` too."""
    body = getattr(task, "_orig_run", task.run)  # celery.app.autoretry wraps it
    return is_coroutine_task(task) or is_coroutine_function(body)


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
