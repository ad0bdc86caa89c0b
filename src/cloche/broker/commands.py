"""One command to the server, its reply as it came: redis-py's typed methods differ by protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis


def send(client: redis.Redis, *words: str | bytes | float) -> Any:
    """Send it and return the reply. Raises what redis-py raises."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def send_all(client: redis.Redis, commands: Sequence[Sequence[str | bytes | float]]) -> list[Any]:
    """Send all in one round trip; each one's reply, or the error it was answered with.

    A tenth of the work of redis-py's pipeline, and without its attempts to repeat them: raises
    what redis-py raises when the connection fails.
    """
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        return [_reply(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # what it reads next would be these replies
        raise
    finally:
        pool.release(connection)


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error
