"""What the processes of a prefork pool have begun when the worker stops or loses its connection.

Celery 5.7 forgets every job that no process has accepted yet (``AsynPool.flush``, called by
``Consumer.on_close``), as its message goes back to the broker. A process tells that it has
accepted a job by a message that the event loop reads later, so that with short tasks some of the
forgotten ones run already: they run again elsewhere, and their process waits thirty seconds for
someone to take their result (billiard's ``Worker._ensure_messages_consumed``) before it ends.
"""

from __future__ import annotations

import select
import time
from inspect import isgenerator
from typing import Any

from kombu.asynchronous import Hub

#: Seconds to wait for the word of processes that were sent a job. It takes them a millisecond;
#: one that says nothing for so long is stopped or dead.
BEGIN_TIMEOUT = 1.0


class Flush:
    """In place of a pool's ``flush``: learn first what has begun."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    def use(cls, pool: Any) -> None:
        """Have ``pool`` (celery.concurrency) do so, if it is one of processes on an event loop."""
        inner = getattr(pool, "_pool", None)
        if hasattr(inner, "_fileno_to_outq") and not isinstance(pool.flush, cls):
            pool.flush = cls(inner)

    def __call__(self) -> None:
        until = time.monotonic() + BEGIN_TIMEOUT
        while self._untold() and time.monotonic() < until and self._read():
            pass
        self._pool.flush()

    def _untold(self) -> bool:
        """Whether a job was sent to a process that has not said that it begins it."""
        return any(
            not job._accepted and getattr(job, "_writer", None) is not None
            for job in list(self._pool._cache.values())
        )

    def _read(self) -> bool:
        """Read one message of each process that has one; False if none can say anything more."""
        handler, hub = self._pool._result_handler, self._pool._result_handler._hub
        outqs = list(self._pool._fileno_to_outq)
        if hub is None or not outqs:
            return False
        try:
            readable, _, _ = select.select(outqs, [], [], BEGIN_TIMEOUT / 20)
        except (OSError, ValueError):  # a process has just gone
            return False
        for fd in readable:
            reader = hub.readers.get(fd, (None,))[0]
            if not isgenerator(reader):
                handler.handle_event(fd)
            else:  # the rest of a message
                _advance(reader, hub, fd)
        return True


def _advance(reader: Any, hub: Hub, fd: int) -> None:
    try:
        next(reader)
    except StopIteration:
        pass
    except (OSError, EOFError):
        hub.remove_reader(fd)
