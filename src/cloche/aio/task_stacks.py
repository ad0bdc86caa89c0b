"""Who runs here: Celery's task and request stacks, told apart by context, not by thread.

``current_task`` and ``self.request`` live on stacks that Celery keys by thread. A thousand
coroutines share one thread, so in this pool the key is the run that the current context
belongs to: it holds across awaits, in child tasks and in ``asyncio.to_thread``. Elsewhere
(no run in the context) the key stays what it is for Celery: the thread, or the greenlet.
"""

from __future__ import annotations

from contextvars import Context, ContextVar
from typing import Any

from celery._state import _task_stack
from celery.app.task import Task
from celery.utils.threads import get_ident

from cloche.errors import SettingsError

#: The run (:class:`cloche.aio.driving.CoroutineRun`) that this context belongs to.
current_run: ContextVar[Any] = ContextVar("cloche_run", default=None)

#: What lies on the stacks: the tasks, and of each of them its requests.
Stacks = tuple[list[Any], list[tuple[Any, list[Any]]]]


def identity() -> Any:
    """The key of the current stack."""
    return current_run.get() or get_ident()


def install(task: Task) -> None:
    """Have ``task``'s request stack, and the stack of current tasks, follow the context."""
    for stack in (_task_stack, task.request_stack):
        if not hasattr(stack, "__ident_func__"):
            raise SettingsError(
                "Celery's task stacks are bound to threads (USE_FAST_LOCALS).",
                why="many coroutines share a thread, so they would see each other's request",
                fix="unset the environment variable USE_FAST_LOCALS for asyncio workers",
            )
        if stack.__ident_func__ is not identity:
            stack.__ident_func__ = identity


def enter(task: Task, run: Any, context: Any) -> None:
    """Push ``task`` and its request for a run that has just begun: nothing is there yet."""
    _task_stack._local.__storage__[run] = {"stack": [task]}
    task.request_stack._local.__storage__[run] = {"stack": [context]}


def leave(task: Task, run: Any) -> None:
    _task_stack._local.__storage__.pop(run, None)
    task.request_stack._local.__storage__.pop(run, None)


def copy_stacks() -> Stacks:
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
