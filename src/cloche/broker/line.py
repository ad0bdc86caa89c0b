"""A connection for oneself: what a channel publishes on, and what keeps a lease.

redis-py connects it; afterwards hiredis packs and parses with nothing between it and the socket, as
for asyncio (decision 0017). Borrowing one from the pool, redis-py's five functions to read a reply
and giving it back are a third of what a call of ``delay`` costs: decision 0028.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import redis

from cloche.broker.commands import Words, is_ready, send_all

#: Seconds after its last use in which a connection is not asked whether it has ended.
SURE = 0.02
#: Bytes read at once: the replies of a call are some dozen.
_READ = 4096

_NOTHING = object()
_parse_error = redis.connection.DefaultParser.parse_error


class Line:
    """One more connection like those of ``client()``, made on first use.

    Whoever finds it taken by another thread, closed or not to be had, borrows one as before.
    """

    def __init__(self, client: Callable[[], redis.Redis]) -> None:
        self._client = client
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._taken = threading.Lock()
        self._closed = False
        self._pool: Any = None
        self._connection: Any = None
        self._socket: Any = None
        self._reader: Any = None
        self._buffer = bytearray(_READ)
        self._used_at = 0.0

    def send_all(self, commands: Sequence[Words]) -> list[Any]:
        """As :func:`cloche.broker.commands.send_all`."""
        if self._pid != os.getpid():  # the connection is the parent's, and so may the lock be
            self._begin()
        if not self._taken.acquire(blocking=False):
            return send_all(self._client(), commands)
        try:
            if self._is_ready():
                return self._exchange(commands)
        finally:
            self._taken.release()
            if self._closed:
                self.close()  # asked for meanwhile
        return send_all(self._client(), commands)

    def _is_ready(self) -> bool:
        """Whether it may be used; connected then. Raises what redis-py raises."""
        now = time.monotonic()
        if now - self._used_at > SURE and not self._check():
            return False
        self._used_at = now
        return True

    def _check(self) -> bool:
        """Connect it if it is not, or not any more; whether there is one."""
        if self._closed:
            return False
        pool: Any = self._client().connection_pool
        if self._pool is not pool:
            self._hang_up()
            self._pool = pool
            if _may_be_like(pool):
                self._connection = pool.connection_class(**pool.connection_kwargs)
        connection = self._connection
        if connection is None:
            return False
        if connection.is_connected:
            if not is_ready(connection):
                connection.disconnect()
            elif time.monotonic() - self._used_at > 2 * connection.health_check_interval:
                connection.check_health()
        connection.connect()
        if connection._sock is not self._socket:
            self._socket = connection._sock
            self._reader = hiredis.Reader(replyError=_parse_error, notEnoughData=_NOTHING)
        return True

    def _exchange(self, commands: Sequence[Words]) -> list[Any]:
        try:
            self._socket.sendall(
                b"".join(hiredis.pack_command(tuple(words)) for words in commands)  # type: ignore[arg-type]
            )
            return [self._reply() for _ in commands]
        except OSError as error:
            self._lose()
            kind = (
                redis.exceptions.TimeoutError
                if isinstance(error, TimeoutError)
                else redis.exceptions.ConnectionError
            )
            raise kind(f"the server does not answer: {error}") from error
        except BaseException:
            self._lose()  # what it reads next would be these replies
            raise

    def _reply(self) -> Any:
        """The next reply, or the error that it is."""
        while True:
            reply = self._reader.gets()
            if reply is _NOTHING:
                count = self._socket.recv_into(self._buffer)
                if not count:
                    raise redis.exceptions.ConnectionError("the server closed the connection")
                self._reader.feed(self._buffer, 0, count)
            elif not isinstance(reply, hiredis.PushNotification):
                return reply

    def _lose(self) -> None:
        self._used_at = 0.0
        if self._connection is not None:
            self._connection.disconnect()

    def close(self) -> None:
        """Close the connection, once nobody uses it; from any thread."""
        self._closed = True
        self.drop()

    def drop(self) -> None:
        """Have the next use connect anew; whoever uses it now goes on."""
        if self._pid == os.getpid() and self._taken.acquire(blocking=False):
            try:
                self._hang_up()
            finally:
                self._taken.release()

    def _hang_up(self) -> None:
        self._lose()
        self._connection = self._pool = self._socket = self._reader = None


def _may_be_like(pool: Any) -> bool:
    """Whether its connections need nothing of it: Sentinel's ask for the master, and those with
    tokens are given new ones."""
    kwargs = pool.connection_kwargs
    return type(pool) is redis.ConnectionPool and kwargs.get("credential_provider") is None
