"""The result backend's client, and Celery's chord scripts as they can be sent again.

Celery sends what completes a chord once: a connection cut at that moment would lose the body.
Every one of these commands may be repeated, but a script whose reply was lost has claimed the body
already: the claim it finds is its own then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import redis
from kombu.utils.encoding import bytes_to_str

#: Calls a function until the server answers: the backend's ``ensure``.
Ensure = Callable[[Callable[[], Any], tuple[()]], Any]

_ensure: ContextVar[Ensure | None] = ContextVar("cloche_ensure", default=None)


@contextmanager
def repeated_by(ensure: Ensure | None) -> Iterator[None]:
    """Within it, each command of a :class:`Client` is sent through ``ensure`` (None: once)."""
    token = _ensure.set(ensure)
    try:
        yield
    finally:
        _ensure.reset(token)


def is_repeated() -> bool:
    return _ensure.get() is not None


class Client(redis.Redis):
    """redis-py's; see :func:`repeated_by`."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's."""
        return _send(partial(super().execute_command, *args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> _Pipeline:
        """As redis-py's."""
        pool, callbacks = self.connection_pool, self.response_callbacks
        return _Pipeline(pool, callbacks, transaction, shard_hint)


class _Pipeline(redis.client.Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)  # forgotten with each attempt

        def attempt() -> Any:
            self.command_stack = list(commands)
            return super(_Pipeline, self).execute(raise_on_error)

        found: list[Any] = _send(attempt)
        return found


def _send(attempt: Callable[[], Any]) -> Any:
    ensure = _ensure.get()
    if ensure is None:
        return attempt()
    with repeated_by(None):
        return ensure(attempt, ())


class PartReturn:
    """Celery's script that counts a part of a chord and, with the last, claims its body."""

    def __init__(self, script: Any) -> None:
        self._script = script

    def __call__(
        self, keys: Sequence[str], args: Sequence[Any], client: Any
    ) -> tuple[int, Any, Any, int]:
        """As Celery's: parts counted, difference of the size, size, whether we have the claim."""
        count, diff, size, claimed = self._script(keys=keys, args=args, client=client)
        if not claimed and size and count == int(size) + int(diff or 0):
            holder = client.get(keys[-1])
            claimed = int(holder is not None and bytes_to_str(holder) == args[-1])
        return count, diff, size, claimed


class Cleanup:
    """Celery's script that ends a chord whose body is sent."""

    def __init__(self, script: Any) -> None:
        self._script = script

    def __call__(self, keys: Sequence[str], args: Sequence[Any], client: Any) -> bool:
        """Whether the chord is ended: by this attempt, or by one whose reply was lost."""
        if self._script(keys=keys, args=args, client=client):
            return True
        holder = client.get(keys[0])
        return holder is not None and bytes_to_str(holder) == "done"
