"""Threads and solo workers that start themselves anew: after so many tasks, or so much memory.

Celery ignores ``max_tasks_per_child`` and ``max_memory_per_child`` in pools without child
processes. Here the worker drains, gives back what it had fetched and executes its own command
line again, as an asyncio worker does (:mod:`cloche.aio.renewal`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psutil
from celery.concurrency.base import BasePool
from celery.utils.log import get_logger

from cloche.aio.renewal import Renewal

logger = get_logger(__name__)


class Recycled(BasePool):
    """Put before one of Celery's pools: counts what it has run."""

    #: The default number of tasks, meant for child processes, is not for these.
    renews_in_place = True

    def on_start(self) -> None:
        super().on_start()
        self._counting = threading.Lock()
        self._renewal = Renewal(self.options.get("maxtasksperchild"), memory_limit(self.options))

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **options: Any,
    ) -> Any:
        """As the pool below, counting each task that has ended, whatever became of it."""

        def ended(outcome: Any) -> None:
            try:
                if callback is not None:
                    callback(outcome)
            finally:
                self.ended()

        return super().on_apply(target, args, kwargs, ended, accept_callback, **options)

    def ended(self) -> None:
        """Count a task."""
        with self._counting:
            self._renewal.count()


def memory_limit(options: dict[str, Any]) -> int | None:
    """KiB, unless the worker needs that much before it has run anything: it would renew itself
    after every task."""
    limit: int | None = options.get("max_memory_per_child")
    resident = psutil.Process().memory_info().rss // 1024
    if limit and resident >= limit:
        logger.warning(
            "max_memory_per_child (%d KiB) is not heeded: the worker uses %d KiB before its "
            "first task", limit, resident,
        )  # fmt: skip
        return None
    return limit
