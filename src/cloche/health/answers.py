"""Whether the things a cluster stands on answer: broker, results, database.

Each function returns a line of detail and raises when the thing does not work.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery
from celery.backends.base import DisabledBackend, KeyValueStoreBackend
from kombu import Connection
from kombu.utils.uuid import uuid

from cloche.broker.connection.probe import reach
from cloche.errors import DatabaseError, ExtraMissingError
from cloche.settings import Settings, hide_passwords, mask_url
from cloche.settings.celery_keys import plain_url

#: Seconds to wait for a connection, or for SQLite's lock.
_DATABASE_TIMEOUT = 3


def needed(app: Celery, settings: Settings) -> Mapping[str, Callable[[], str]]:
    """What any process of ``app`` needs to be ready, as ``/readyz`` tells."""
    return {
        "broker": partial(check_broker, app.connection_for_read),
        "results": partial(check_results, app),
        "database": partial(check_database, settings),
    }


def one_line(error: BaseException) -> str:
    """An error in one line without the passwords in it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(hide_passwords(lines[0]).split())


def check_broker(connect: Callable[[], Connection]) -> str:
    """Open a fresh connection and, where the transport can, PING."""
    with connect() as connection:
        reach(connection)
        with connection.channel() as channel:
            client = getattr(channel, "client", None)
            if client is not None and hasattr(client, "ping"):
                client.ping()
        return mask_url(plain_url(connection.as_uri(include_password=True)))


def check_results(app: Celery) -> str:
    """Read a result that is not there."""
    backend = app.backend
    if isinstance(backend, DisabledBackend):
        return "results are not kept (no result backend is set)"
    if not readable(backend):
        return f"{_place(backend)} sends each result to its caller; nobody else can read it"
    if isinstance(backend, KeyValueStoreBackend):
        backend.get(backend.get_key_for_task(uuid()))
    else:
        backend._get_task_meta_for(uuid())
    return _place(backend)


def _place(backend: Any) -> str:
    """The backend's URL, or where it has none (``django-db``) what Celery calls it."""
    if backend.url is None:
        return str(backend.app.conf.result_backend)
    return mask_url(plain_url(backend.as_uri(include_password=True)))


def readable(backend: Any) -> bool:
    """Whether others than the caller can read a result: ``rpc`` sends it to the caller alone."""
    return isinstance(backend, KeyValueStoreBackend) or hasattr(backend, "_get_task_meta_for")


def check_database(settings: Settings) -> str:
    """One query with the bare driver; says where the database is. Raises the driver's errors.

    Neither a pool nor a migration stands between: a check must never create what it asks for.
    """
    if not settings.keeps_rows:
        return "none is needed"
    url = settings.database.url.get_secret_value() if settings.database.url else None
    if url is None:
        return _sqlite(settings.run_dir.absolute() / "cloche.db")
    if url.startswith("sqlite"):
        return _sqlite(Path(url.partition(":///")[2].partition("?")[0]).absolute())
    if not url.startswith("postgresql"):
        raise DatabaseError(
            f"Cloche keeps its data in SQLite or PostgreSQL, not in {mask_url(url)}",
            fix="set database.url, or leave it unset",
        )
    return _postgresql(url)


def _sqlite(path: Path) -> str:
    if not path.exists():
        return f"{path} (made at first use)"
    # Read-only: a check must never create or migrate.
    with closing(
        sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_DATABASE_TIMEOUT)
    ) as opened:
        opened.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return str(path)


def _postgresql(url: str) -> str:
    try:
        import psycopg  # noqa: PLC0415 (an extra, and 60 ms of start-up where it is not used)
    except ImportError:
        raise ExtraMissingError(
            "The driver of PostgreSQL is not installed.", fix="pip install 'cloche[postgres]'"
        ) from None
    plain = "postgresql" + url[url.index("://") :]
    with psycopg.connect(plain, connect_timeout=_DATABASE_TIMEOUT) as opened:
        opened.execute("SELECT 1")
    return mask_url(plain)
