"""One engine per process, whatever was forked; every failure a `DatabaseError`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from cloche.database.failures import explained, shown_url
from cloche.database.schema import upgrade
from cloche.errors import DatabaseError
from cloche.outages import OutageReporter
from cloche.plain import search_words
from cloche.process_local import Process, ProcessLocal, here
from cloche.settings import Settings

#: Seconds a writer waits for another process's write transaction.
BUSY_TIMEOUT = 10.0
#: Seconds until an unreachable PostgreSQL is given up.
CONNECT_TIMEOUT = 5


class Database:
    """Where rows are kept; cheap to make, opened at first use, safe to inherit by fork.

    SQLite connections are closed after each use (``NullPool``): SQLite keeps its lock
    table per process, so a connection that is open during a fork corrupts the child's
    idea of which locks it holds. PostgreSQL connections are pooled; a forked child drops
    the inherited pool unclosed and opens its own.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = _url(settings)
        self._lock = ProcessLocal(threading.Lock)
        self._engine: Engine | None = None
        self._process: Process | None = None
        self._voice = OutageReporter(
            "the database",
            self._answers,
            "what needs it fails or is retried",
            remind=settings.broker.remind,
        )

    @property
    def engine(self) -> Engine:
        with self._lock.get():
            if self._engine is None:
                self._engine = engine_of(self.url)
            elif self._process is not here():
                self._engine.dispose(close=False)
            self._process = here()
            return self._engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._spoken(), explained(self.url), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end, rolled back on an exception.

        On SQLite it takes the write lock at once (``BEGIN IMMEDIATE``): a transaction that
        reads first and then writes would fail with "database is locked", without waiting,
        whenever somebody else wrote in between.
        """
        with (
            self._spoken(),
            explained(self.url),
            self.engine.execution_options(cloche_write=True).begin() as connection,
        ):
            yield connection

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        """A database that is away is told of with one voice, whoever needed it."""
        try:
            yield
        except DatabaseError as error:
            self._voice.failed(error.why or error.what)
            raise

    def _answers(self) -> None:
        with self.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")

    def migrate(self) -> None:
        """Bring the tables to this version of the code; does nothing when they are.

        Several processes may call it at once. Raises `DatabaseError` when the database
        cannot be used or was written by a newer version.
        """
        with explained(self.url):
            upgrade(self.engine)

    def close(self) -> None:
        """Close this process's idle connections; the next use opens new ones."""
        self._voice.rest()
        if self._engine is not None and self._process is here():
            self._engine.dispose()


def _url(settings: Settings) -> URL:
    if settings.database.url is None:
        return URL.create("sqlite", database=str(settings.run_dir.absolute() / "cloche.db"))
    try:
        url = make_url(settings.database.url.get_secret_value())
    except ArgumentError as error:
        raise DatabaseError(
            "The database URL cannot be read.",
            why=str(error),
            fix="Write database.url as postgresql://user:password@host/name or sqlite:///file.db.",
        ) from error
    kind = url.get_backend_name()
    if kind == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if kind == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    raise DatabaseError(
        f"Downloads and history cannot be kept in {shown_url(url)}.",
        why="Several processes share them, in a SQLite file or in PostgreSQL.",
        fix="Set database.url to postgresql://… or sqlite:///file.db, or leave it unset.",
    )


def engine_of(url: URL) -> Engine:
    """An engine with the options that fit the database. Raises DatabaseError."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        return create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT},
        )
    except ModuleNotFoundError as error:
        raise DatabaseError(
            "PostgreSQL cannot be used.",
            why=f"The Python package {error.name} is not installed.",
            fix="pip install 'cloche[postgres]'",
        ) from error


def _sqlite(url: URL) -> Engine:
    try:
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"The directory of the database {url.database} cannot be made.",
            why=str(error),
            fix="Set run_dir or database.url to a place this user may write to.",
        ) from error
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: object, _entry: ConnectionPoolEntry) -> None:
    """Make the transactions ours (the driver would begin none before DDL), and durable."""
    connection.isolation_level = None  # type: ignore[attr-defined]
    # The text index of the log is made with it (migration 0003).
    connection.create_function("cloche_words", 1, search_words, deterministic=True)  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("cloche_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def migrate(settings: Settings) -> None:
    """Bring the settings' database up to date before anybody uses it. Raises DatabaseError."""
    database = Database(settings)
    try:
        database.migrate()
    finally:
        database.close()
