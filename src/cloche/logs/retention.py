"""Old records leave: whole days at once on PostgreSQL, in small bites elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import FromClause, column, table

from cloche.database import Database
from cloche.database.partitions import drop, partitions_of
from cloche.database.retention import delete_older
from cloche.database.types import RecordId
from cloche.logs.table import RECORDS, log_dead_letters, log_records
from cloche.timestamps import first_id


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
        rows=delete_older(database, records, records.c.id, first_id(before), dry_run=dry_run),
        dead_letters=delete_older(
            database, log_dead_letters, log_dead_letters.c.received, before, dry_run=dry_run
        ),
    )


def _expire_days(database: Database, found: Expired) -> tuple[Expired, FromClause]:
    """Drop the partitions of days that are over; what is left for deleting row by row: records
    with an id of no day that had a partition when they were written."""
    partitions = partitions_of(database, RECORDS)
    old = [one for one in partitions if one.before(first_id(found.before))]
    if not found.dry_run:
        for one in old:
            drop(database, RECORDS, one.name)
    strays = next((one.name for one in partitions if one.default), RECORDS)
    done = replace(
        found, days=tuple(one.name for one in old), day_rows=sum(one.rows for one in old)
    )
    return done, table(strays, column("id", RecordId))
