"""Old records leave: whole days at once on PostgreSQL, in small bites elsewhere."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Table, column, delete, func, select, table, text

from cloche.backoff import Backoff
from cloche.database import Database
from cloche.errors import DatabaseError
from cloche.logs.record import first_id
from cloche.logs.table import RecordId, log_dead_letters, log_records

#: Rows deleted in a transaction: others write between two of them.
BATCH = 5000
_LOCK_TIMEOUT, _TRIES = "1s", 6
#: Any constant does; it names this work among a server's advisory locks.
_ADVISORY_LOCK = 0xC10C4E7
#: The partitions of ``log_records``: quoted name, bounds as SQL, about how many rows.
_PARTITIONS = text(
    "SELECT c.oid::regclass::text, coalesce(pg_get_expr(c.relpartbound, c.oid), ''),"
    " greatest(c.reltuples, 0)::bigint"
    " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = to_regclass('log_records') ORDER BY 1"
)
_UPPER = re.compile(r"TO \('([0-9a-f-]{36})'\)")
_DEFAULT = "DEFAULT"


@dataclass(frozen=True, slots=True)
class Expired:
    """What went, or in a dry run would go. ``days`` are whole partitions, with about ``day_rows``
    records; ``rows`` and ``dead_letters`` were deleted one by one."""

    before: datetime
    dry_run: bool
    days: tuple[str, ...] = ()
    day_rows: int = 0
    rows: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str
    bound: str
    rows: int

    def before(self, id: UUID) -> bool:
        """Whether all its ids are less."""
        upper = _UPPER.search(self.bound)
        return upper is not None and UUID(upper[1]) <= id


def expire(
    database: Database, keep: timedelta, *, dry_run: bool = False, now: datetime | None = None
) -> Expired:
    """Remove records and dead letters older than ``keep``.

    On PostgreSQL by whole days (UTC): a day goes when all of it is older. Safe to be interrupted,
    and to run twice at once. Raises DatabaseError.
    """
    before = (now or datetime.now(UTC)) - keep
    found = Expired(before, dry_run)
    records: FromClause = log_records
    if database.url.get_backend_name() == "postgresql":
        before = before.replace(hour=0, minute=0, second=0, microsecond=0)
        found, records = _expire_days(database, replace(found, before=before))
    return replace(
        found,
        rows=_expire_rows(database, records, records.c.id, first_id(before), dry_run),
        dead_letters=_expire_rows(
            database, log_dead_letters, log_dead_letters.c.received, before, dry_run
        ),
    )


def _expire_days(database: Database, found: Expired) -> tuple[Expired, FromClause]:
    """Drop the partitions of days that are over; what is left for deleting row by row: records
    with an id of no day that had a partition when they were written."""
    with database.read() as connection:
        partitions = [
            _Partition(name, bound, rows) for name, bound, rows in connection.execute(_PARTITIONS)
        ]
    old = [one for one in partitions if one.before(first_id(found.before))]
    if not found.dry_run:
        for one in old:
            _drop(database, one.name)
    strays = next((one.name for one in partitions if one.bound == _DEFAULT), "log_records")
    done = replace(
        found, days=tuple(one.name for one in old), day_rows=sum(one.rows for one in old)
    )
    return done, table(strays, column("id", RecordId))


def _drop(database: Database, name: str) -> None:
    """Detach a partition and drop it, which takes as long for a million records as for one.

    Both need the parent for themselves for a moment. Who waits for a lock holds up everybody
    behind him, so it is given up after a second, and tried again when others have had a turn.
    """
    for wait in (*Backoff(0.2, 2.0, 3.0, 0.5).delays(_TRIES), None):
        try:
            with database.write() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
                if not connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}):
                    return  # somebody else was quicker
                connection.execute(text(f"ALTER TABLE log_records DETACH PARTITION {name}"))
                connection.execute(text(f"DROP TABLE {name}"))
                return
        except DatabaseError:
            if wait is None:
                raise
            time.sleep(wait)


def _expire_rows(
    database: Database,
    rows: FromClause,
    age: ColumnElement[Any],
    before: object,
    dry_run: bool,
) -> int:
    """Delete where ``age`` is less than ``before``, in bites; how many there were."""
    old = age < before
    if dry_run:
        with database.read() as connection:
            return connection.scalar(select(func.count()).select_from(rows).where(old)) or 0
    bite = select(rows.c.id).where(old).order_by(age).limit(BATCH).scalar_subquery()
    statement = delete(cast(Table, rows)).where(rows.c.id.in_(bite))
    total = 0
    while True:
        with database.write() as connection:
            gone = connection.execute(statement).rowcount
        total += gone
        if gone < BATCH:
            return total
