"""A worker that starts itself anew: after so many tasks, or with so much memory.

There is no child to replace, so the process itself is: it drains as on SIGTERM and then
executes its own command line again. What it had prefetched goes back to the broker.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from threading import Event
from time import monotonic

import psutil
from celery import platforms
from celery.platforms import EX_OK
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from cloche.aio.loop import stop_loop

logger = get_logger("cloche.aio")

#: Seconds between two looks at the memory.
LOOK = 1.0

#: Set once somebody wants this process to end: it is not to begin anew.
unwanted = Event()


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
        elif self._memory and monotonic() - self._looked > LOOK:
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
    stop_loop()  # libuv ends a process whose files are closed under it
    logging.shutdown()
    platforms.close_open_fds([sys.__stdin__, sys.__stdout__, sys.__stderr__])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
