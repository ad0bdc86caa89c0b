"""What went wrong with a database, in plain language."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError as SqlError
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError

from cloche.errors import DatabaseError
from cloche.settings import hide_passwords, mask_url

#: What a driver's message contains, what that means, what mends it.
#: SQLite: https://sqlite.org/rescode.html; PostgreSQL: libpq and server messages.
_KNOWN = (
    (
        "password authentication failed",
        "refuses this user or password",
        "Correct the user and password in database.url.",
    ),
    (
        "no password supplied",
        "asks for a password",
        "Write the password in database.url.",
    ),
    (
        "does not exist",
        "has no such database or user",
        "Create it (createdb, createuser) or correct database.url.",
    ),
    (
        "connection refused",
        "does not answer: nothing listens there",
        "Start PostgreSQL or correct host and port in database.url.",
    ),
    (
        "could not translate host name",
        "does not answer: its host name is unknown",
        "Correct the host in database.url.",
    ),
    (
        "failed to resolve host",
        "does not answer: its host name is unknown",
        "Correct the host in database.url.",
    ),
    (
        "server closed the connection",
        "ended the connection",
        "Try again; PostgreSQL's log says why it ended.",
    ),
    ("terminating connection", "ended the connection", "Try again; somebody stopped PostgreSQL."),
    ("the database system is", "is starting or stopping", "Try again in a moment."),
    ("timeout", "does not answer in time", "Is the host reachable from here?"),
    (
        "unable to open database file",
        "cannot be opened",
        "Set run_dir or database.url to a place this user may write to.",
    ),
    ("readonly database", "cannot be written", "Give this user the right to write the file."),
    (
        "database is locked",
        "is held by another process",
        "End the process that keeps a transaction open on it.",
    ),
    ("disk is full", "has no room to grow", "Free some space on its disk."),
    ("too many clients", "takes no more connections", "Raise max_connections of PostgreSQL."),
)


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn the driver's complaints inside into a `DatabaseError`.

    Violated constraints pass: they are answers, not failures.
    """
    try:
        yield
    except IntegrityError:
        raise
    except (OperationalError, InterfaceError) as error:
        raise explanation(url, str(error.orig)) from error
    except SqlError as error:
        if type(error) is not SqlError:  # its other children are mistakes in our statements
            raise
        raise explanation(url, str(error.orig)) from error


def shown_url(url: URL) -> str:
    """Where the database is, without passwords: those of the query, too."""
    return mask_url(url.render_as_string(hide_password=False))


def explanation(url: URL, message: str) -> DatabaseError:
    """A driver's complaint as an error of ours."""
    shown = shown_url(url)
    why = hide_passwords(" ".join(message.split()))
    for sign, meaning, fix in _KNOWN:
        if sign in message.lower():
            return DatabaseError(f"The database {shown} {meaning}.", why=why, fix=fix)
    return DatabaseError(f"The database {shown} cannot be used.", why=why)
