"""Who runs here: Celery's task and request stacks, told apart by context, not by thread.

``current_task`` and ``self.request`` live on stacks that Celery keys by thread. A thousand
coroutines share one thread, so in this pool they live in a ``ContextVar``: they hold across
awaits, in child tasks and in ``asyncio.to_thread``. A plain thread has a context of its own,
so nothing changes for plain tasks.
"""

from __future__ import annotations

from contextvars import ContextVar
from threading import get_ident
from typing import Any

from celery._state import _task_stack
from celery.app.task import Task

from cloche.errors import SettingsError

#: The run (:class:`cloche.aio.run.Run`) that this context belongs to.
current_run: ContextVar[Any] = ContextVar("cloche_run", default=None)


class ContextLocal:
    """What a Celery ``LocalStack`` keeps its list in, by context instead of by thread."""

    __slots__ = ("_kept",)

    #: Read by Celery's ``LocalStack.__ident_func__``; nothing here is keyed by it.
    __ident_func__ = staticmethod(get_ident)

    def __init__(self, name: str) -> None:
        self._kept: ContextVar[list[Any] | None] = ContextVar(name, default=None)

    @property
    def stack(self) -> list[Any] | None:
        return self._kept.get()

    @stack.setter
    def stack(self, value: list[Any]) -> None:
        self._kept.set(value)

    def __release_local__(self) -> None:
        self._kept.set(None)


def install(task: Task) -> tuple[ContextLocal, ContextLocal]:
    """Have the stack of current tasks and ``task``'s requests follow the context: both."""
    return _local(_task_stack, "celery_tasks"), _local(task.request_stack, f"{task.name}.request")


def _local(stack: Any, name: str) -> ContextLocal:
    local = getattr(stack, "_local", None)
    if local is None:
        raise SettingsError(
            "Celery's task stacks are bound to threads (USE_FAST_LOCALS).",
            why="many coroutines share a thread, so they would see each other's request",
            fix="unset the environment variable USE_FAST_LOCALS for asyncio workers",
        )
    if not isinstance(local, ContextLocal):
        stack._local = local = ContextLocal(name)
    return local
