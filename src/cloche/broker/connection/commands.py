"""One command to the server, its reply as it came: redis-py's typed methods differ by protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis
import redis

from cloche.process_local import here

#: Words of one command.
Words = Sequence[str | bytes | float]


def send(client: redis.Redis, *words: str | bytes | float) -> Any:
    """Send it and return the reply. Raises what redis-py raises."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def send_all(client: redis.Redis, commands: Sequence[Words]) -> list[Any]:
    """Send all in one round trip; each one's reply, or the error it was answered with.

    A tenth of the work of redis-py's pipeline, and without its attempts to repeat them: raises
    what redis-py raises when the connection fails.
    """
    pool: Any = client.connection_pool
    connection = _take(pool)
    try:
        packed = b"".join(
            hiredis.pack_command(tuple(words))  # type: ignore[arg-type]
            for words in commands
        )
        connection.send_packed_command([packed])
        return [_reply(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # what it reads next would be these replies
        raise
    finally:
        _give(pool, connection)


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


# redis-py counts every loan of a connection for its metrics and tells its listeners: half of what
# sending a command costs. Connections are borrowed once, for as long as the pool lives; it knows
# them as in use, so it closes them with the others. Not from pools with a limit or a will of
# their own.

#: Connections kept of one pool, and how many it must be able to lend: a small limit is its own.
_KEPT = 8
_LENT = 50


def _take(pool: Any) -> Any:
    """A connection that is ready to send. Raises what redis-py raises."""
    kept = _kept(pool)
    while (connection := _pop(kept)) is not None:
        if not connection.should_reconnect() and is_ready(connection):
            return connection
        pool.release(connection)
    return pool.get_connection()


def is_ready(connection: Any) -> bool:
    """Whether nothing is to be read: neither old replies nor the end of the connection.

    Where its end is to be read it is disconnected, and connects again when it is used.
    """
    try:
        return not connection.can_read()
    except (redis.exceptions.RedisError, OSError):
        connection.disconnect()
        return False


def _give(pool: Any, connection: Any) -> None:
    kept = _kept(pool)
    if kept is None or len(kept) >= _KEPT:
        pool.release(connection)
    else:
        kept.append(connection)


def disconnect_idle(client: redis.Redis) -> None:
    """Disconnect what nobody uses now; it connects again when it is used.

    Where one connection fell silent others did, too, and each would be waited for in its turn.
    """
    pool: Any = client.connection_pool
    kept = _kept(pool)
    while (connection := _pop(kept)) is not None:
        connection.disconnect()
        pool.release(connection)
    pool.disconnect(inuse_connections=False)


def _pop(kept: list[Any] | None) -> Any:
    """One of those that are kept; None if there is none."""
    try:
        return kept.pop() if kept else None
    except IndexError:  # another thread took the last
        return None


def _kept(pool: Any) -> list[Any] | None:
    """The connections that were borrowed of ``pool`` in this process; None: it keeps its own."""
    if type(pool) is not redis.ConnectionPool or pool.max_connections < _LENT:
        return None
    process, kept = getattr(pool, "_cloche_kept", (None, None))
    if process is not here():
        kept = []
        pool._cloche_kept = here(), kept  # type: ignore[attr-defined]
    return kept
