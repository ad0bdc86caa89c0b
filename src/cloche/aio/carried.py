"""Which task runs here: Celery's stacks of tasks and requests, by context instead of by thread.

``current_task`` and ``self.request`` are the tops of stacks that Celery keeps per thread
(``celery.utils.threads.LocalStack``). A coroutine shares its thread with others, so inside one
the stacks are those of its context: of the coroutine, its child tasks and its ``to_thread``.
"""

from __future__ import annotations

from contextvars import Context, ContextVar
from typing import Any

from celery._state import _task_stack
from celery.utils.threads import get_ident

#: Stands for a thread in the stacks of a context; None where the thread itself counts.
_place: ContextVar[object | None] = ContextVar("cloche_place", default=None)

#: What lies on the stacks: the tasks, and of each of them its requests.
Stacks = tuple[list[Any], list[tuple[Any, list[Any]]]]


def _ident() -> object:
    return _place.get() or get_ident()


def follow_context(task: Any) -> None:
    """Make ``current_task`` and ``task.request`` follow the context; again is harmless."""
    for stack in (_task_stack, task.request_stack):
        if stack.__ident_func__ is not _ident:
            stack.__ident_func__ = _ident


def copied() -> Stacks:
    """The stacks as they are here."""
    tasks = list(_task_stack.stack)
    different = {id(task): task for task in tasks}.values()
    return tasks, [(task, list(task.request_stack.stack)) for task in different]


def fill(context: Context, stacks: Stacks) -> None:
    """Give ``context`` stacks of its own, with ``stacks`` on them; :func:`clear` them after."""
    context.run(_fill, stacks)


def _fill(stacks: Stacks) -> None:
    _place.set(object())
    tasks, requests = stacks
    for task in tasks:
        _task_stack.push(task)
    for task, own in requests:
        follow_context(task)
        for request in own:
            task.request_stack.push(request)


def clear(context: Context, stacks: Stacks) -> None:
    """Take off what :func:`fill` put on, so that a child task left behind sees none of it."""
    context.run(_clear, stacks)


def _clear(stacks: Stacks) -> None:
    tasks, requests = stacks
    for _ in tasks:
        _task_stack.pop()
    for task, own in requests:
        for _ in own:
            task.request_stack.pop()
