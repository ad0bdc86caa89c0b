"""Who runs here: Celery's task and request stacks, told apart by context, not by thread.

``current_task`` and ``self.request`` live on stacks that Celery keys by thread. A thousand
coroutines share one thread, so in this pool the key is the run that the current context
belongs to: it holds across awaits, in child tasks and in ``asyncio.to_thread``. Elsewhere
(no run in the context) the key stays what it is for Celery: the thread, or the greenlet.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from celery._state import _task_stack
from celery.app.task import Task
from celery.utils.threads import get_ident

from cloche.errors import SettingsError

#: The run (:class:`cloche.aio.run.Run`) that this context belongs to.
current_run: ContextVar[Any] = ContextVar("cloche_run", default=None)


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
    """The run has ended."""
    _task_stack._local.__storage__.pop(run, None)
    task.request_stack._local.__storage__.pop(run, None)
