"""Where in the work a line of log is written: the run, the step, the task around it.

Context variables: each asyncio task and each thread that was started with a copied context has
its own, and what a coroutine sets is gone when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from cloche.running import task_here, top

#: Between the names of a step and of the steps inside it.
WITHIN = "/"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a record takes over where its writer does not say."""

    run_id: str | None = None
    task_id: str | None = None
    concept_id: str | None = None
    agent: str | None = None
    category: str | None = None
    step: str | None = None


_EMPTY = Scope()
_scope: ContextVar[Scope] = ContextVar("cloche_log_scope", default=_EMPTY)
#: The scope here, without the Celery task.
here = _scope.get


def surroundings() -> Scope:
    """The scope here; its task is the Celery task that runs, if nobody named another."""
    scope = here()
    if scope.task_id is not None:
        return scope
    task_id = current_task_id()
    return scope if task_id is None else replace(scope, task_id=task_id)


def current_task_id() -> str | None:
    """The id of the Celery task that runs here."""
    task = task_here()
    request = None if task is None else top(task.request_stack) or task.request
    return None if request is None else request.id


@contextmanager
def scope(**fields: str | None) -> Iterator[Scope]:
    """Everything logged inside takes over ``fields`` (those of `Scope`), where not said otherwise.

    A ``step`` becomes a part of the step around it.
    """
    with bound(within(**fields)) as inner:
        yield inner


def within(**fields: str | None) -> Scope:
    """The scope here with ``fields``; those that are None stay as they are."""
    outer = here()
    given = {name: value for name, value in fields.items() if value is not None}
    if "step" in given and outer.step is not None:
        given["step"] = f"{outer.step}{WITHIN}{given['step']}"
    return replace(outer, **given)


@contextmanager
def bound(inner: Scope) -> Iterator[Scope]:
    """Make ``inner`` the scope until the end of the block."""
    token = _scope.set(inner)
    try:
        yield inner
    finally:
        _scope.reset(token)


def settle(inner: Scope) -> None:
    """Make ``inner`` the scope for the rest of this context: of a request, of a task."""
    _scope.set(inner)
