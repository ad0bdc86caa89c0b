"""The floor: rows made beforehand, into the same table and indexes, nothing else."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg

from bench.apps.logs_case import DATABASE, SQLITE, fields
from cloche.database import Database
from cloche.database.partitions import DayPartitions
from cloche.logs.codec import Limits, RecordRow, decode, encode
from cloche.logs.record import LogRecord, stamp
from cloche.logs.table import RECORDS
from cloche.logs.write.rows import INDEX, PostgresqlRows, SqliteRows
from cloche.settings import Settings

BATCH = 5000
_LIMITS = Limits(10_000, 10_000)


def rows(count: int) -> list[tuple[Any, ...]]:
    """What the driver is given."""
    if not SQLITE:
        settings = Settings.model_validate({"database": {"url": DATABASE}})
        DayPartitions(Database(settings), RECORDS).ensure([])
    found = [decode(encode(_record(number), _LIMITS)) for number in range(count)]
    values = _rows().values
    return [values(row) for row in found if isinstance(row, RecordRow)]


def _rows() -> SqliteRows | PostgresqlRows:
    if SQLITE:
        return SqliteRows()
    return PostgresqlRows(Database(Settings.model_validate({"database": {"url": DATABASE}})))


def _record(number: int) -> LogRecord:
    given = fields(number)
    return LogRecord(*stamp(), given.pop("level"), **given)


def write(rows: list[tuple[Any, ...]]) -> None:
    """Batches, each committed."""
    (_write_sqlite if SQLITE else _copy)(rows)


def _copy(rows: list[tuple[Any, ...]]) -> None:
    bulk = _rows()
    assert isinstance(bulk, PostgresqlRows)
    with psycopg.connect(DATABASE) as link:
        for start in range(0, len(rows), BATCH):
            with link.cursor() as cursor, cursor.copy(bulk.copy.format(RECORDS)) as copy:
                copy.set_types(bulk.types)
                for row in rows[start : start + BATCH]:
                    copy.write_row(row)
            link.commit()


def _write_sqlite(rows: list[tuple[Any, ...]]) -> None:
    link = sqlite3.connect(DATABASE.removeprefix("sqlite:///"), isolation_level=None)
    statement = SqliteRows().statement
    link.execute("PRAGMA synchronous=NORMAL")
    for start in range(0, len(rows), BATCH):
        link.execute("BEGIN IMMEDIATE")
        [top] = link.execute("SELECT coalesce(max(seq), 0) FROM cloche_log_records").fetchone()
        link.executemany(statement, rows[start : start + BATCH])
        link.execute(INDEX, (top,))
        link.execute("COMMIT")
    link.close()
