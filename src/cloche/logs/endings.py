"""No end of a process takes records with it: exit, SIGTERM, a pool process's end, a fork."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import weakref
from types import FrameType
from typing import Any, Protocol

from celery import signals

#: Seconds that what is in memory may take to leave before it is put on disk.
PATIENCE = 5.0


class Closing(Protocol):
    """What empties a logger."""

    def close(self, timeout: float) -> None: ...
    def start_anew(self) -> None: ...


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(one: Closing) -> None:
    """Close it when the process ends, as long as it exists."""
    _watched.add(one)
    _watch_sigterm()


def close_all(**_: Any) -> None:
    """Close all loggers of this process; they may be used again."""
    for one in tuple(_watched):
        one.close(PATIENCE)


def _watch_sigterm() -> None:
    """Where nobody else handles SIGTERM, it would end the process without a thought for us."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, _: FrameType | None) -> None:
    # In a thread of its own: the one that is interrupted here may hold any lock.
    closing = threading.Thread(target=close_all, daemon=True)
    closing.start()
    closing.join(PATIENCE + 1)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _after_fork() -> None:
    for one in tuple(_watched):
        one.start_anew()


atexit.register(close_all)
os.register_at_fork(after_in_child=_after_fork)
# A prefork child leaves by os._exit, without a thought for atexit.
signals.worker_process_shutdown.connect(close_all, weak=False, dispatch_uid="cloche-logs")
signals.worker_shutdown.connect(close_all, weak=False, dispatch_uid="cloche-logs")
