"""No end of a process takes records with it: exit, SIGTERM, SIGHUP, the end of a pool process or of
a child of `multiprocessing`, a fork.
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import signal
import threading
import weakref
from types import FrameType
from typing import Any, Protocol

import billiard.util
from celery import signals

from cloche.process_local import after_fork

#: Seconds that what is in memory may take to leave before it is put on disk.
CLOSE_TIMEOUT = 5.0


class Closable(Protocol):
    """What empties a logger."""

    def close(self, timeout: float) -> None: ...
    def end(self, timeout: float) -> None: ...
    def start_anew(self) -> None: ...


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(one: Closable) -> None:
    """Close it when the process ends, as long as it exists."""
    _watched.add(one)
    _watch_signals()


def close_all(**_: Any) -> None:
    """Close all loggers of this process; they may be used again."""
    for one in tuple(_watched):
        one.close(CLOSE_TIMEOUT)


def end_all() -> None:
    """Close all loggers at the end of the process: what is logged after this, by destructors and
    late exit handlers, goes to disk at once."""
    for one in tuple(_watched):
        one.end(CLOSE_TIMEOUT)


def _watch_signals() -> None:
    """Where nobody else handles them, they would end the process without a thought for us."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminated)


def _terminated(number: int, _: FrameType | None) -> None:
    # In a thread of its own: the one that is interrupted here may hold any lock.
    closing = threading.Thread(target=end_all, daemon=True)
    closing.start()
    closing.join(CLOSE_TIMEOUT + 1)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _after_fork() -> None:
    for one in tuple(_watched):
        one.start_anew()


def _end_with_children(module: Any) -> None:
    """A child of `multiprocessing` (billiard's too) leaves by os._exit after its finalizers, and
    forgets at its start those that it was forked with."""
    module.Finalize(None, end_all, exitpriority=0)


atexit.register(end_all)
after_fork(_after_fork)
for _module in (multiprocessing.util, billiard.util):
    _end_with_children(_module)
    # It calls the function with the object, which must live as long: a module does.
    _module.register_after_fork(_module, _end_with_children)
# A prefork child leaves by os._exit, without a thought for atexit.
signals.worker_process_shutdown.connect(close_all, weak=False, dispatch_uid="cloche-logs")
signals.worker_shutdown.connect(close_all, weak=False, dispatch_uid="cloche-logs")
