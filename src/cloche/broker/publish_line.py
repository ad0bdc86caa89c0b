"""The connection that a channel publishes on, for itself.

Borrowing one from redis-py's pool and giving it back costs 15 µs, a tenth of a call of ``delay``;
large pools keep theirs (:mod:`cloche.broker.commands`), a channel's lends ten and can spare none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import redis

from cloche.broker.commands import exchange, is_ready, send_all


class Line:
    """One more connection like those of ``client()``, made on first use.

    Whoever finds it taken by another thread, closed or not to be had, borrows one as before.
    """

    def __init__(self, client: Callable[[], redis.Redis]) -> None:
        self._client = client
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._taken = threading.Lock()
        self._closed = False
        self._pool: Any = None
        self._connection: Any = None

    def send_all(self, commands: Sequence[Sequence[str | bytes | float]]) -> list[Any]:
        """As :func:`cloche.broker.commands.send_all`."""
        if self._pid != os.getpid():  # the connection is the parent's, and so may the lock be
            self._open()
        if not self._taken.acquire(blocking=False):
            return send_all(self._client(), commands)
        try:
            connection = self._ready()
            if connection is not None:
                return exchange(connection, commands)
        finally:
            self._taken.release()
            if self._closed:
                self.close()  # asked for meanwhile
        return send_all(self._client(), commands)

    def _ready(self) -> Any:
        pool: Any = self._client().connection_pool
        if self._closed or not _may_be_like(pool):
            return None
        if self._pool is not pool:
            self._hang_up()
            self._connection = pool.connection_class(**pool.connection_kwargs)
            self._pool = pool
        connection = self._connection
        if connection.is_connected and not is_ready(connection):
            connection.disconnect()
        return connection

    def close(self) -> None:
        """Close the connection, once nobody uses it; from any thread."""
        if self._pid != os.getpid():
            return
        self._closed = True
        if self._taken.acquire(blocking=False):
            try:
                self._hang_up()
            finally:
                self._taken.release()

    def _hang_up(self) -> None:
        connection, self._connection, self._pool = self._connection, None, None
        if connection is not None:
            connection.disconnect()


def _may_be_like(pool: Any) -> bool:
    """Whether its connections need nothing of it: Sentinel's ask for the master, and those with
    tokens are given new ones."""
    kwargs = pool.connection_kwargs
    return type(pool) is redis.ConnectionPool and kwargs.get("credential_provider") is None
