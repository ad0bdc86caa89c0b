"""How a record becomes a row of ``cloche_log_records``."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import Connection

from cloche.database.bulk import PostgresqlBulk, SqliteBulk
from cloche.logs.codec import RecordRow

_YEAR_2000 = 946_684_800_000_000
_JSONB = b"\x01"

#: Words of the new rows into the text index.
INDEX = (
    "INSERT INTO cloche_log_records_text (rowid, message) "
    "SELECT seq, message FROM cloche_log_records_words WHERE seq > ?"
)


class PostgresqlRows(PostgresqlBulk[RecordRow]):
    """No value needs an object of its own: a uuid is its 16 bytes, a timestamptz µs since 2000, a
    jsonb its text after a version byte (uuid_recv, timestamptz_recv, jsonb_recv in the sources).
    """

    table = "cloche_log_records"
    columns = RecordRow._fields
    types = (
        *("bytea", "int8", "int2", "text", "text", "text"),
        *("text", "text", "text", "text", "bytea", "float8"),
    )

    def values(self, row: RecordRow) -> tuple[object, ...]:
        """With :attr:`types`."""
        details, duration = row.details, row.duration_ms
        return (
            row.id,
            row.time - _YEAR_2000,
            *row[2:10],
            None if details is None else _JSONB + orjson.dumps(details),
            None if duration is None else float(duration),
        )


class SqliteRows(SqliteBulk[RecordRow]):
    """With their words in the text index."""

    table = "cloche_log_records"
    columns = RecordRow._fields

    def values(self, row: RecordRow) -> tuple[object, ...]:
        details = None if row.details is None else orjson.dumps(row.details).decode()
        duration = None if row.duration_ms is None else float(row.duration_ms)
        return (*row[:10], details, duration)

    def insert(self, connection: Connection, rows: Sequence[RecordRow], *, careful: bool) -> int:
        """As `Bulk.insert`."""
        last = connection.exec_driver_sql("SELECT coalesce(max(seq), 0) FROM cloche_log_records")
        top = last.scalar_one()
        new = super().insert(connection, rows, careful=careful)
        connection.exec_driver_sql(INDEX, (top,))
        return new
