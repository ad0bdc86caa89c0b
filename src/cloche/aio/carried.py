"""Celery's stacks carried into a coroutine that other code waits for.

The caller's task and request are on the stacks of the caller's thread; the coroutine, its
child tasks and its ``to_thread`` have stacks of their context (:mod:`cloche.aio.stacks`), with
the same on them.
"""

from __future__ import annotations

from contextvars import Context
from typing import Any

from celery._state import _task_stack

from cloche.aio.stacks import current_run, install

#: What lies on the stacks: the tasks, and of each of them its requests.
Stacks = tuple[list[Any], list[tuple[Any, list[Any]]]]


def copied() -> Stacks:
    """The stacks as they are here."""
    tasks = list(_task_stack.stack)
    different = {id(task): task for task in tasks}.values()
    return tasks, [(task, list(task.request_stack.stack)) for task in different]


def fill(context: Context, stacks: Stacks) -> None:
    """Give ``context`` stacks of its own, with ``stacks`` on them; :func:`clear` them after."""
    context.run(_fill, stacks)


def _fill(stacks: Stacks) -> None:
    current_run.set(object())
    tasks, requests = stacks
    for task in tasks:
        _task_stack.push(task)
    for task, own in requests:
        install(task)
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
