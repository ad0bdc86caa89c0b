"""Connections for oneself: what a channel publishes on, and what keeps a lease.

redis-py connects it; afterwards hiredis packs and parses with nothing between it and the socket, as
for asyncio (decision 0017). Borrowing one from the pool, redis-py's five functions to read a reply
and giving it back are a third of what a call of ``delay`` costs: decision 0028.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import hiredis
import redis

from cloche.broker.connection.commands import Words, is_ready, send_all
from cloche.process_local import ProcessLocal

#: Seconds after its last use in which a connection is not asked whether it has ended.
SURE = 0.02
#: Bytes read at once: the replies of a call are some dozen.
_READ = 4096

_NOTHING = object()
_parse_error = redis.connection.DefaultParser.parse_error


class Sender(Protocol):
    """What sends commands and reads their replies: `Connection` or `Connections`."""

    def send_all(self, commands: Sequence[Words]) -> list[Any]:
        """As :func:`cloche.broker.connection.commands.send_all`."""


class Connection:
    """One more connection like those of ``client()``, made on first use; for one thread of one
    process at a time.

    Where its like cannot be made (:func:`_may_be_like`) it borrows one.
    """

    def __init__(self, client: Callable[[], redis.Redis]) -> None:
        self._client = client
        self._buffer = bytearray(_READ)
        self._pool: Any = None
        self._connection: Any = None
        self._socket: Any = None
        self._reader: Any = None
        self._used_at = 0.0

    def send_all(self, commands: Sequence[Words]) -> list[Any]:
        """As :func:`cloche.broker.connection.commands.send_all`."""
        if self._is_ready():
            return self._exchange(commands)
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
        pool: Any = self._client().connection_pool
        if self._pool is not pool:
            self.close()
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
        """Close the connection; the next use connects anew."""
        self._lose()
        self._connection = self._pool = self._socket = self._reader = None


class Connections:
    """Lines of one channel, each lent to one thread (or greenlet) at a time.

    As many as are used at once, up to ``limit()``; whoever comes when all are in use waits for
    one, as kombu's pools let wait. A forked child has lines of its own.
    """

    def __init__(self, client: Callable[[], redis.Redis], limit: Callable[[], int]) -> None:
        self._client = client
        self._limit = limit
        self._lent = ProcessLocal(_Lent)
        self.closed = False

    def send_all(self, commands: Sequence[Words]) -> list[Any]:
        """As :func:`cloche.broker.connection.commands.send_all`."""
        lent = self._lent.get()
        line = self._take(lent)
        try:
            return line.send_all(commands)
        finally:
            self._give(lent, line)

    def _take(self, lent: _Lent) -> Connection:
        try:
            return lent.idle.pop()
        except IndexError:
            return self._wait(lent)

    def _wait(self, lent: _Lent) -> Connection:
        """A new line, or the next that is given back."""
        with lent.changed:
            lent.waiting += 1  # before looking: who gives one back looks at it afterwards
            try:
                while True:
                    if lent.idle:
                        with suppress(IndexError):  # another thread took it
                            return lent.idle.pop()
                    elif lent.made < self._limit():
                        lent.made += 1
                        return Connection(self._client)
                    else:
                        lent.changed.wait()
            finally:
                lent.waiting -= 1

    def _give(self, lent: _Lent, line: Connection) -> None:
        if self.closed:
            line.close()
        lent.idle.append(line)
        if lent.waiting:
            with lent.changed:
                lent.changed.notify()

    def close(self) -> None:
        """Close the connections, those in use once they are given back; from any thread.

        Whoever sends nevertheless connects for that alone.
        """
        self.closed = True
        self.drop()

    def drop(self) -> None:
        """Have the idle ones connect anew when they are used next."""
        lent = self._lent.peek()
        if lent is None:
            return
        taken = []
        while lent.idle:
            with suppress(IndexError):
                taken.append(lent.idle.pop())
        for line in taken:
            line.close()
            self._give(lent, line)


class _Lent:
    """The lines of one process: those that nobody uses, how many there are, who waits for one."""

    def __init__(self) -> None:
        self.idle: list[Connection] = []
        self.made = 0
        self.waiting = 0
        self.changed = threading.Condition()


def _may_be_like(pool: Any) -> bool:
    """Whether its connections need nothing of it: Sentinel's ask for the master, and those with
    tokens are given new ones."""
    kwargs = pool.connection_kwargs
    return type(pool) is redis.ConnectionPool and kwargs.get("credential_provider") is None
