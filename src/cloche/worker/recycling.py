"""Threads and solo workers that start themselves anew: after so many tasks, or so much memory.

Celery ignores ``max_tasks_per_child`` and ``max_memory_per_child`` in pools without child
processes. Here the worker drains, gives back what it had fetched and executes its own command
line again, as an asyncio worker does (:mod:`cloche.worker.recycling`).
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import psutil
from celery import platforms
from celery.concurrency.base import BasePool
from celery.platforms import EX_OK
from celery.utils.log import get_logger
from celery.worker import state as worker_state

logger = get_logger(__name__)

#: Seconds between two looks at the memory.
MEMORY_INTERVAL = 1.0


class Flag:
    """What a signal handler may set: an Event has a lock, which the code it interrupts may hold."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


#: Set once somebody wants this process to end: it is not to begin anew.
unwanted = Flag()


class Renewal:
    """Counts finished tasks. ``memory`` is in KiB, as ``worker_max_memory_per_child`` is."""

    def __init__(self, tasks: int | None, memory: int | None) -> None:
        self._tasks, self._memory = tasks, memory
        self._finished = 0
        self._looked = 0.0
        self._begun = False

    def count(self) -> None:
        """A task has finished; begin the renewal if it was one too many."""
        self._finished += 1
        if self._begun:
            return
        if self._tasks and self._finished >= self._tasks:
            self._begin(f"{self._finished} tasks ran (worker_max_tasks_per_child)")
        elif self._memory and monotonic() - self._looked > MEMORY_INTERVAL:
            self._looked = monotonic()
            resident = psutil.Process().memory_info().rss // 1024
            if resident > self._memory:
                self._begin(f"it uses {resident} KiB (worker_max_memory_per_child)")

    def _begin(self, why: str) -> None:
        self._begun = True
        logger.info("the worker drains and starts anew: %s", why)
        atexit.register(execute_again)
        worker_state.should_stop = EX_OK


def execute_again() -> None:
    """Replace this process by a new one of the same command line and id, if it is wanted."""
    if unwanted.is_set():
        return
    # The others that were registered, earlier, would never be called: instrumentation sends what it
    # has collected, the event loop ends (libuv aborts where files are closed under it).
    atexit.unregister(execute_again)
    atexit._run_exitfuncs()
    logging.shutdown()
    platforms.close_open_fds([sys.__stdin__, sys.__stdout__, sys.__stderr__])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


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
