"""State that a forked process must not share with its parent: each process makes its own.

A child of ``os.fork`` (multiprocessing, prefork, ``gunicorn --preload``) begins with a copy of its
parent's objects: sockets that two processes would read, locks that are held for ever, threads that
do not run. Python's fork handlers tell of such a child; the pid is compared at each use as well,
because uWSGI forks in C and calls them only with ``py-call-uwsgi-fork-hooks``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Process:
    """Stands for one process. Two are the same process if they are the same object."""

    __slots__ = ("lock", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        #: Held while something is made for this process.
        self.lock = threading.RLock()


class ProcessLocal(Generic[T]):
    """A value that is made with ``make()`` by each process that asks for it."""

    __slots__ = ("_held", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._held: tuple[Process, T] | None = None

    def get(self) -> T:
        """This process's value. From any thread."""
        process, held = here(), self._held
        if held is not None and held[0] is process:
            return held[1]
        with process.lock:
            held = self._held
            if held is None or held[0] is not process:
                held = self._held = (process, self._make())
            return held[1]

    def peek(self) -> T | None:
        """This process's value if it was made, else None."""
        held = self._held
        return held[1] if held is not None and held[0] is here() else None

    def set(self, value: T) -> None:
        self._held = (here(), value)


def here() -> Process:
    """This process. It is compared with ``is``."""
    found = _here
    return found if found.pid == os.getpid() else _notice(found)


def after_fork(callback: Callable[[], object]) -> None:
    """Have ``callback()`` called in each forked child, before it uses anything of Cloche's.

    A bound method is called as long as its object exists.
    """
    bound = hasattr(callback, "__self__")
    _callbacks.append(weakref.WeakMethod(callback) if bound else lambda: callback)


_here = Process()
#: What gives each callback, or None for one whose object is gone.
_callbacks: list[Callable[[], Any]] = []


def _begin() -> None:
    global _here
    _here = Process()
    _callbacks[:] = [one for one in _callbacks if one() is not None]
    for one in tuple(_callbacks):
        callback = one()
        if callback is not None:
            callback()


def _notice(before: Process) -> Process:
    """A fork of which Python was not told."""
    with before.lock:
        if _here is before:
            _begin()
    return _here


os.register_at_fork(after_in_child=_begin)
