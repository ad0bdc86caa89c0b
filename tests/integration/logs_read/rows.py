"""Records as they lie in the tables, put there without the pipeline that writes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from cloche.database import Database
from cloche.logs.record import LEVELS, LogRecord
from cloche.logs.table import log_records
from cloche.timestamps import first_id, micros

_serial = itertools.count(1)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def made(
    message: str = "said",
    level: Any = "info",
    *,
    at: datetime | None = None,
    after: float = 0.0,
    category: str = "test",
    step: str | None = None,
    **fields: Any,
) -> LogRecord:
    """A record of ``at`` (now) and ``after`` seconds."""
    time = (at or datetime.now(UTC)) + timedelta(seconds=after)
    return LogRecord(micros(time), next(_serial) << 20, level, category, step, message, **fields)


def put(database: Database, records: Iterable[LogRecord]) -> Sequence[LogRecord]:
    """Into the table, as the writer leaves them."""
    records = list(records)
    rows = [
        {
            "id": one.id,
            "time": one.time,
            "level": LEVELS[one.level],
            **{name: getattr(one, name) for name in LogRecord._fields[3:]},
        }
        for one in records
    ]
    with database.write() as connection:
        connection.execute(log_records.insert(), rows)
        if connection.dialect.name == "sqlite":
            connection.execute(
                text(
                    "INSERT INTO cloche_log_records_text (rowid, message) "
                    "SELECT seq, message FROM cloche_log_records_words "
                    "WHERE seq NOT IN (SELECT id FROM cloche_log_records_text_docsize)"
                )
            )
    return records


def make_day(database: Database, day: datetime) -> str:
    """The partition of a day on PostgreSQL, as the writer makes it."""
    day = day.replace(hour=0, minute=0, second=0, microsecond=0)
    name = f"cloche_log_records_{day:%Y%m%d}"
    low, high = first_id(day), first_id(day + timedelta(days=1))
    with database.write() as connection:
        connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF cloche_log_records "
                f"FOR VALUES FROM ('{low}') TO ('{high}')"
            )
        )
    return name
