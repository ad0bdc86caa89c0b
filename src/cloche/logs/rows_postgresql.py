"""Rows into PostgreSQL: COPY, first in good faith, then so that repeated ones do no harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from cloche.database import Database
from cloche.database.failures import explanation
from cloche.logs.line import Row
from cloche.logs.partitions import Partitions
from cloche.logs.record import moment
from cloche.logs.verdict import Verdict

#: µs in a day.
_DAY = 86_400_000_000
_COLUMNS = ", ".join(Row._fields)
#: How each column travels in the binary format, which does not name types: a uuid is its 16 bytes,
#: a timestamptz µs since 2000 and a jsonb its text after a version byte (uuid_recv,
#: timestamptz_recv, jsonb_recv in the sources), so that no value needs an object of its own.
TYPES = (
    *("bytea", "int8", "int2", "text", "text", "text"),
    *("text", "text", "text", "text", "bytea", "float8"),
)
_YEAR_2000 = 946_684_800_000_000
_JSONB = b"\x01"
COPY = f"COPY {{}} ({_COLUMNS}) FROM STDIN (FORMAT binary)"
_INCOMING = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS log_records_incoming (LIKE log_records) "
    "ON COMMIT DELETE ROWS"
)
_MERGE = (
    f"INSERT INTO log_records ({_COLUMNS}) SELECT {_COLUMNS} "  # noqa: S608 (names of ours)
    "FROM log_records_incoming ON CONFLICT DO NOTHING"
)
#: Classes of SQLSTATE that speak of the data: wrong values, constraints, limits
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_UNFIT = ("22", "23", "54")
_UNIQUE_VIOLATION = "23505"
#: No partition takes the row: somebody dropped the default one.
_CHECK_VIOLATION = "23514"


class PostgresqlRows:
    """See `Rows`."""

    def __init__(self, database: Database) -> None:
        self._url = database.url
        self._partitions = Partitions(database)

    def prepare(self, rows: Sequence[Row]) -> None:
        """Have partitions for the rows' days."""
        days = {row.time // _DAY for row in rows}
        self._partitions.ensure(moment(day * _DAY).date() for day in days)

    def insert(self, connection: Connection, rows: Sequence[Row], *, careful: bool) -> int:
        """Insert rows; how many were new."""
        driver: Any = connection.dialect.loaded_dbapi
        try:
            link: Any = connection.connection
            with link.cursor() as cursor:
                if not careful:
                    _copy(cursor, "log_records", rows)
                    return len(rows)
                cursor.execute(_INCOMING)
                _copy(cursor, "log_records_incoming", rows)
                cursor.execute(_MERGE)
                return int(cursor.rowcount)
        except driver.Error as error:
            if self.verdict(error) is None:
                raise explanation(self._url, str(error)) from error
            raise

    def verdict(self, error: Exception) -> Verdict | None:
        """What a refusal means, by its SQLSTATE."""
        state = getattr(error, "sqlstate", None) or ""
        if state == _UNIQUE_VIOLATION:
            return Verdict.REPEATED
        return Verdict.UNFIT if state[:2] in _UNFIT and state != _CHECK_VIOLATION else None


def _copy(cursor: Any, table: str, rows: Sequence[Row]) -> None:
    with cursor.copy(COPY.format(table)) as copy:
        copy.set_types(TYPES)
        for row in map(values, rows):
            copy.write_row(row)


def values(row: Row) -> tuple[object, ...]:
    """A row as the driver takes it, with TYPES."""
    details, duration = row.details, row.duration_ms
    return (
        row.id,
        row.time - _YEAR_2000,
        *row[2:10],
        None if details is None else _JSONB + orjson.dumps(details),
        None if duration is None else float(duration),
    )
