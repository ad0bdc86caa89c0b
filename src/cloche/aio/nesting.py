"""Waiting for a coroutine in synchronous code that a coroutine of the same loop has called.

``other.apply()`` in a coroutine has to run ``other``'s coroutine on the loop it would block.
So each step of an outer coroutine runs in a greenlet: waiting inside hands what is awaited to
the outer coroutine's own driver, and the loop goes on (as SQLAlchemy's asyncio layer does).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from greenlet import getcurrent, greenlet


class _Step(greenlet):
    """Runs one step of a coroutine, in the context of who asked for it."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        super().__init__(step)
        self.gr_context = getcurrent().gr_context


class Nestable(Coroutine[Any, Any, Any]):
    """``coroutine``, in whose synchronous callees :func:`wait_here` works."""

    __slots__ = ("_coroutine", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._waiting: _Step | None = None

    @property
    def cr_running(self) -> bool:
        """Whether it runs at this moment (as of a native coroutine)."""
        return bool(getattr(self._coroutine, "cr_running", False)) and self._waiting is None

    def send(self, value: Any) -> Any:
        """Go on with ``value``; what is awaited next. Raises StopIteration at the end."""
        step = self._waiting
        if step is None:
            return self._after(step := _Step(self._coroutine.send), step.switch(value))
        return self._after(step, step.switch(value))

    def throw(self, error: Any, *more: Any) -> Any:
        """Go on by raising ``error``; what is awaited next."""
        step = self._waiting
        if step is None:
            return self._after(step := _Step(self._coroutine.throw), step.switch(error))
        return self._after(step, step.throw(error))

    def close(self) -> None:
        """End it; synchronous code that still waits inside is left by GreenletExit."""
        if self._waiting is not None:
            self._waiting.throw()
        self._coroutine.close()

    def __await__(self) -> Any:
        raise TypeError("drive a Nestable by send() and throw()")

    def _after(self, step: _Step, awaited: Any) -> Any:
        self._waiting = None if step.dead else step
        return awaited


def can_wait_here() -> bool:
    """Whether a :class:`Nestable` coroutine has called this code."""
    return isinstance(getcurrent(), _Step)


def wait_here(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What ``coroutine`` returns or raises, while the loop goes on; see :func:`can_wait_here`."""
    outside: greenlet = getcurrent().parent
    go_on, value = coroutine.send, None
    while True:
        try:
            awaited = go_on(value)
        except StopIteration as stop:
            return stop.value
        try:
            go_on, value = coroutine.send, outside.switch(awaited)
        except BaseException as error:  # noqa: BLE001 (raised inside)
            go_on, value = coroutine.throw, error
