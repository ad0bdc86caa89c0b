"""Many rows at once, repeated ones without harm: COPY on PostgreSQL, executemany on SQLite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, ProgrammingError

from cloche.database.engine import Database
from cloche.database.failures import explanation

T = TypeVar("T")

#: Classes of SQLSTATE that speak of the data: wrong values, constraints, limits
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_UNFIT = ("22", "23", "54")
_UNIQUE_VIOLATION = "23505"
#: No partition takes the row: somebody dropped the default one.
_CHECK_VIOLATION = "23514"


class Refusal(Enum):
    """What an error of :meth:`Bulk.insert` says of the rows.

    REPEATED: some are there already. UNFIT: some can never be stored.
    """

    REPEATED = auto()
    UNFIT = auto()


class Bulk(ABC, Generic[T]):
    """Inserts rows of one table. Subclasses say how a row travels."""

    #: The table, and its columns in the order of :meth:`values`.
    table: str
    columns: tuple[str, ...]

    @abstractmethod
    def values(self, row: T) -> tuple[object, ...]:
        """A row as the driver takes it."""

    @abstractmethod
    def insert(self, connection: Connection, rows: Sequence[T], *, careful: bool) -> int:
        """Insert rows; how many were new. ``careful``: some may be there already.

        Raises the driver's errors that :meth:`refusal` understands, else DatabaseError.
        """

    @abstractmethod
    def refusal(self, error: Exception) -> Refusal | None:
        """What ``error`` says of the rows; None: nothing, the database itself has a problem."""


class PostgresqlBulk(Bulk[T]):
    """By binary COPY: first in good faith, then by way of a temporary table."""

    #: The type of each column: the binary format names none.
    types: tuple[str, ...]

    def __init__(self, database: Database) -> None:
        self._url = database.url
        columns, incoming = ", ".join(self.columns), f"{self.table}_incoming"
        self.copy = f"COPY {{}} ({columns}) FROM STDIN (FORMAT binary)"
        self._create = (
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {incoming} "
            f"(LIKE {self.table}) ON COMMIT DELETE ROWS"
        )
        self._merge = (
            f"INSERT INTO {self.table} ({columns}) SELECT {columns} "  # noqa: S608 (names of ours)
            f"FROM {incoming} ON CONFLICT DO NOTHING"
        )

    def insert(self, connection: Connection, rows: Sequence[T], *, careful: bool) -> int:
        """As `Bulk.insert`."""
        driver: Any = connection.dialect.loaded_dbapi
        try:
            link: Any = connection.connection
            with link.cursor() as cursor:
                if not careful:
                    self._copy(cursor, self.table, rows)
                    return len(rows)
                cursor.execute(self._create)
                self._copy(cursor, f"{self.table}_incoming", rows)
                cursor.execute(self._merge)
                return int(cursor.rowcount)
        except driver.Error as error:
            if self.refusal(error) is None:
                raise explanation(self._url, str(error)) from error
            raise

    def _copy(self, cursor: Any, table: str, rows: Sequence[T]) -> None:
        with cursor.copy(self.copy.format(table)) as copy:
            copy.set_types(self.types)
            for row in map(self.values, rows):
                copy.write_row(row)

    def refusal(self, error: Exception) -> Refusal | None:
        state = getattr(error, "sqlstate", None) or ""
        if state == _UNIQUE_VIOLATION:
            return Refusal.REPEATED
        return Refusal.UNFIT if state[:2] in _UNFIT and state != _CHECK_VIOLATION else None


class SqliteBulk(Bulk[T]):
    """By executemany, in the transaction of its caller. The table's key is ``id``."""

    def __init__(self) -> None:
        self.statement = (
            f"INSERT INTO {self.table} ({', '.join(self.columns)}) "  # noqa: S608 (names of ours)
            f"VALUES ({', '.join('?' * len(self.columns))}) ON CONFLICT (id) DO NOTHING"
        )

    def insert(self, connection: Connection, rows: Sequence[T], *, careful: bool) -> int:
        """As `Bulk.insert`; repeated ones are passed over in any case."""
        made = [self.values(row) for row in rows]
        return connection.exec_driver_sql(self.statement, made).rowcount

    def refusal(self, error: Exception) -> Refusal | None:
        unfit = isinstance(error, IntegrityError | DataError | InterfaceError | ProgrammingError)
        return Refusal.UNFIT if unfit else None
