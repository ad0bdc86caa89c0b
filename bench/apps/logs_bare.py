"""The floor: rows made beforehand, into the same table and indexes, nothing else."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg

from bench.apps.logs_case import DATABASE, SQLITE, fields
from cloche.database import Database
from cloche.logs.line import Limits, Row, decode, encode
from cloche.logs.partitions import Partitions
from cloche.logs.record import LogRecord
from cloche.logs.rows_postgresql import COPY, TYPES, values
from cloche.logs.rows_sqlite import INDEX, INSERT
from cloche.logs.rows_sqlite import values as sqlite_values
from cloche.logs.stamp import stamp
from cloche.settings import Settings

BATCH = 5000
_LIMITS = Limits(10_000, 10_000)


def rows(count: int) -> list[tuple[Any, ...]]:
    """What the driver is given."""
    if not SQLITE:
        settings = Settings.model_validate({"database": {"url": DATABASE}})
        Partitions(Database(settings)).ensure([])
    found = [decode(encode(_record(number), _LIMITS)) for number in range(count)]
    made = sqlite_values if SQLITE else values
    return [made(row) for row in found if isinstance(row, Row)]


def _record(number: int) -> LogRecord:
    given = fields(number)
    return LogRecord(*stamp(), given.pop("level"), **given)


def write(rows: list[tuple[Any, ...]]) -> None:
    """Batches, each committed."""
    (_write_sqlite if SQLITE else _copy)(rows)


def _copy(rows: list[tuple[Any, ...]]) -> None:
    with psycopg.connect(DATABASE) as link:
        for start in range(0, len(rows), BATCH):
            with link.cursor() as cursor, cursor.copy(COPY.format("log_records")) as copy:
                copy.set_types(TYPES)
                for row in rows[start : start + BATCH]:
                    copy.write_row(row)
            link.commit()


def _write_sqlite(rows: list[tuple[Any, ...]]) -> None:
    link = sqlite3.connect(DATABASE.removeprefix("sqlite:///"), isolation_level=None)
    link.execute("PRAGMA synchronous=NORMAL")
    for start in range(0, len(rows), BATCH):
        link.execute("BEGIN IMMEDIATE")
        [top] = link.execute("SELECT coalesce(max(seq), 0) FROM log_records").fetchone()
        link.executemany(INSERT, rows[start : start + BATCH])
        link.execute(INDEX, (top,))
        link.execute("COMMIT")
    link.close()
