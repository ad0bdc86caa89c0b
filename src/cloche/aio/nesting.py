"""Waiting for a coroutine in synchronous code that a coroutine of the same loop has called.

``other.apply()`` in a coroutine has to run ``other``'s coroutine on the loop it would block.
So an outer coroutine runs in a greenlet of its own: waiting inside hands what is awaited to
the outer coroutine's driver, and the loop goes on (as SQLAlchemy's asyncio layer does).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from greenlet import getcurrent, greenlet


class _Body(greenlet):
    """Runs a coroutine from its first step to its last, in the context of who started it.

    One greenlet for all steps: those that libraries start inside have it as their parent, and
    switch to it as long as they live.
    """

    def __init__(self) -> None:
        super().__init__(wait_here)
        self.gr_context = getcurrent().gr_context


class Nestable(Coroutine[Any, Any, Any]):
    """``coroutine``, in whose synchronous callees :func:`wait_here` works."""

    __slots__ = ("_body", "_coroutine", "cr_running")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._body: _Body | None = None
        #: Whether it runs at this moment (as of a native coroutine).
        self.cr_running = False

    def send(self, value: Any) -> Any:
        """Go on with ``value``; what is awaited next. Raises StopIteration at the end."""
        if self._body is not None:
            return self._go_on(self._body, self._body.switch, value)
        self._body = _Body()
        return self._go_on(self._body, self._body.switch, self._coroutine)

    def throw(self, error: Any, *more: Any) -> Any:
        """Go on by raising ``error``; what is awaited next."""
        if self._body is None:
            return self._coroutine.throw(error)
        return self._go_on(self._body, self._body.throw, error)

    def close(self) -> None:
        """End it; synchronous code that waits inside is left by GreenletExit."""
        if self._body is not None and not self._body.dead:
            self._body.throw()
        self._coroutine.close()

    def __await__(self) -> Any:
        raise TypeError("drive a Nestable by send() and throw()")

    def _go_on(self, body: _Body, step: Callable[[Any], Any], value: Any) -> Any:
        self.cr_running = True
        try:
            awaited = step(value)
        finally:
            self.cr_running = False
        if body.dead:
            raise StopIteration(awaited)
        return awaited


def can_wait_here() -> bool:
    """Whether a :class:`Nestable` coroutine has called this code."""
    return isinstance(getcurrent(), _Body)


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
