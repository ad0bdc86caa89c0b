"""One connection to the server on an asyncio loop; many commands on their way at once.

redis-py connects it (TLS, unix sockets, passwords, Sentinel); afterwards hiredis packs and
parses without anything between it and the socket: decision 0017 has the measurements.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
import redis
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection

#: Words of one command.
Words = Sequence[str | bytes | int | float]

#: What of a synchronous pool's connection parameters means the same for an asyncio connection.
_SHARED = frozenset(
    {
        "host", "port", "path", "db", "username", "password", "credential_provider",
        "client_name", "socket_keepalive", "socket_keepalive_options", "socket_connect_timeout",
    }
)  # fmt: skip

#: Seconds a connection may take, where the transport options say nothing.
CONNECT_SECONDS = 5.0

_parse_error = redis.connection.DefaultParser.parse_error


class AsyncConnection(asyncio.Protocol):
    """Commands go out in the order given; replies come back in that order.

    ``on_lost(error)`` is called once when an open link breaks; what waited for replies has
    been told by then. Only for the loop's thread.
    """

    def __init__(self, on_lost: Callable[[BaseException], None]) -> None:
        self._on_lost = on_lost
        self._transport: Any = None
        self._writer: Any = None
        self._reader: Any = None
        self._waiting: deque[_Batch] = deque()

    @property
    def open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    async def connect(self, pool: redis.ConnectionPool) -> None:
        """Connect to where ``pool``'s connections go. Raises what redis-py raises."""
        connection = await asynchronous(pool)
        await connection.connect()  # type: ignore[no-untyped-call]
        # Kept, because the end of a writer nobody knows closes its transport.
        self._writer = connection._writer
        connection._reader = connection._writer = None
        self._reader = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse, replyError=_parse_error
        )
        self._transport = self._writer.transport
        self._transport.set_protocol(self)

    def send(self, commands: Iterable[Words]) -> asyncio.Future[list[Any]]:
        """Send them; the replies, errors among them as values.

        Raises redis.ConnectionError (at once or from the future) when the link is not open.
        """
        if self._transport is None:
            raise redis.exceptions.ConnectionError("not connected")
        packed = [
            hiredis.pack_command(tuple(words))  # type: ignore[arg-type]
            for words in commands
        ]
        batch = _Batch(len(packed), asyncio.get_running_loop().create_future())
        self._waiting.append(batch)
        self._transport.write(b"".join(packed))
        return batch.future

    def close(self) -> None:
        """End it; what waits for replies fails."""
        self._end(redis.exceptions.ConnectionError("the link was closed"))

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """asyncio: something came."""
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                batch = waiting[0]
                batch.replies.append(reply)
                if len(batch.replies) == batch.count:
                    waiting.popleft()
                    if not batch.future.done():
                        batch.future.set_result(batch.replies)
        except (redis.exceptions.RedisError, IndexError) as error:
            self._broken(redis.exceptions.ConnectionError(f"not understood: {error!r}"))

    def eof_received(self) -> None:
        """asyncio: the server closed it."""
        self._broken(redis.exceptions.ConnectionError("closed by the server"))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: it is gone."""
        reason = f": {exc}" if exc else ""
        self._broken(redis.exceptions.ConnectionError(f"connection lost{reason}"))

    def break_off(self, why: str) -> None:
        """Treat it as broken: no reply in time."""
        self._broken(redis.exceptions.TimeoutError(why))

    def _broken(self, error: BaseException) -> None:
        if self._transport is not None:
            self._end(error)
            self._on_lost(error)

    def _end(self, error: BaseException) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for batch in waiting:
            if not batch.future.done():
                batch.future.set_exception(error)
                batch.future.exception()  # not all that asked still listen


class _Batch:
    """Commands sent together, and their replies so far."""

    __slots__ = ("count", "future", "replies")

    def __init__(self, count: int, future: asyncio.Future[list[Any]]) -> None:
        self.count = count
        self.future = future
        self.replies: list[Any] = []


async def asynchronous(pool: redis.ConnectionPool) -> AbstractConnection:
    """An asyncio connection, not yet connected, to where ``pool``'s connections go."""
    found = dict(pool.connection_kwargs)
    if hasattr(pool, "get_master_address"):  # Sentinel: asks the network
        found["host"], found["port"] = await asyncio.to_thread(pool.get_master_address)
    kinds = pool.connection_class.__mro__
    kind: type[AbstractConnection] = Connection
    shared = set(_SHARED)
    if redis.UnixDomainSocketConnection in kinds:
        kind = UnixDomainSocketConnection
        shared -= {"host", "port", "socket_keepalive", "socket_keepalive_options"}
    else:
        shared.discard("path")
    arguments = {name: found[name] for name in shared & found.keys()}
    if redis.SSLConnection in kinds:
        kind = SSLConnection
        arguments |= {name: value for name, value in found.items() if name.startswith("ssl_")}
    if not arguments.get("socket_connect_timeout"):
        arguments["socket_connect_timeout"] = CONNECT_SECONDS
    return kind(protocol=2, **arguments)
