"""What the libraries below raise, as one message of ours: broker, database, disk away.

Imported only when something has failed: it brings Redis, kombu and SQLAlchemy with it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from cloche.errors import (
    BrokerError,
    BrokerFault,
    ClocheError,
    DatabaseError,
)
from cloche.settings import hide_passwords

_LINKS = 20  # of a chain of causes that may lead in a circle
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def explained(error: BaseException) -> ClocheError | None:
    """The error to show instead; None for what nobody foresaw, whose traceback is the message."""
    for link in _chain(error):
        if isinstance(link, ClocheError):
            return link
    for link in _chain(error):
        if isinstance(link, SQLAlchemyError):
            return DatabaseError("The database cannot be used.", why=_why(link))
        if isinstance(link, OSError) and link.filename is not None:
            return _of_file(link)
        if isinstance(link, RedisError | KombuError | OperationalError | AMQPError | OSError):
            return _of_connection(link)
        if isinstance(link, ValueError) and "port" in str(link).lower():  # kombu reads a URL
            return BrokerError(
                "A URL of broker or results cannot be read.",
                fault=BrokerFault.BAD_URL,
                why="its port is no port number",
                fix="in a password, write / as %2F, ? as %3F, # as %23",
            )
    return None


def _of_file(error: OSError) -> ClocheError:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return _of_disk(error, name)


def _of_disk(error: OSError, name: str) -> ClocheError:
    full = error.errno in _FULL
    return ClocheError(
        f"{name} cannot be used." if name else "A file cannot be written.",
        why=error.strerror or str(error),
        fix="Free some space on its disk." if full else "Set run_dir to a place of this user.",
    )


def _of_connection(error: BaseException) -> ClocheError:
    if isinstance(error, OSError) and error.errno in _FULL:
        return _of_disk(error, "")
    return BrokerError(
        "The broker cannot be used.",
        fault=BrokerFault.OTHER,
        why=_why(error),
        fix="cloche health tells more; broker.url says where it is",
    )


def _why(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return hide_passwords(lines[0])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_LINKS):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
