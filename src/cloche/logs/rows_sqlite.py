"""Rows into SQLite: one transaction a batch, its text index in one statement."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, ProgrammingError

from cloche.logs.line import Row
from cloche.logs.verdict import Verdict

INSERT = (
    f"INSERT INTO log_records ({', '.join(Row._fields)}) "  # noqa: S608 (names of ours)
    f"VALUES ({', '.join('?' * len(Row._fields))}) ON CONFLICT (id) DO NOTHING"
)
INDEX = (
    "INSERT INTO log_records_text (rowid, message) "
    "SELECT seq, message FROM log_records WHERE seq > ?"
)


class SqliteRows:
    """See `Rows`."""

    def prepare(self, rows: Sequence[Row]) -> None:
        """There is nothing to prepare."""

    def insert(self, connection: Connection, rows: Sequence[Row], *, careful: bool) -> int:
        """Insert those that are not there; how many."""
        last = connection.exec_driver_sql("SELECT coalesce(max(seq), 0) FROM log_records")
        top = last.scalar_one()
        new = connection.exec_driver_sql(INSERT, [values(row) for row in rows]).rowcount
        connection.exec_driver_sql(INDEX, (top,))
        return new

    def verdict(self, error: Exception) -> Verdict | None:
        """What a refusal means."""
        unfit = isinstance(error, IntegrityError | DataError | InterfaceError | ProgrammingError)
        return Verdict.UNFIT if unfit else None


def values(row: Row) -> tuple[object, ...]:
    """A row as the driver takes it."""
    details = None if row.details is None else orjson.dumps(row.details).decode()
    return (*row[:10], details, row.duration_ms)
