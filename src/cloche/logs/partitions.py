"""The daily partitions of ``log_records`` on PostgreSQL: made ahead of time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from cloche.database import Database
from cloche.logs.record import first_id

logger = logging.getLogger(__name__)

#: Days back for which a partition is made on demand, for what waited in a spool; rows that are
#: older (or of a producer whose clock is wrong) go to the default partition.
BACK = timedelta(days=31)
#: The same ahead: tomorrow's is made today.
AHEAD = timedelta(days=2)
#: Seconds until a partition that could not be made is tried again.
_AGAIN = 60.0
#: Names the lock of partition making among a server's advisory locks.
_ADVISORY_LOCK = 0xC10C4F


def name_of(day: date) -> str:
    """The partition of a day (UTC)."""
    return f"log_records_{day:%Y%m%d}"


class Partitions:
    """Makes what is missing. A failure costs nothing but the default partition's rows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[date] = set()
        self._again_at = 0.0

    def ensure(self, days: Iterable[date]) -> None:
        """Have a partition for each of ``days``, today and tomorrow. Raises DatabaseError."""
        today = datetime.now(UTC).date()
        wanted = {
            day
            for day in {*days, today, today + timedelta(days=1)} - self._known
            if today - BACK <= day < today + AHEAD
        }
        if not wanted or time.monotonic() < self._again_at:
            return
        self._again_at = 0.0
        for day in sorted(wanted):
            self._make(day)

    def _make(self, day: date) -> None:
        try:
            with self._database.write() as connection:
                _create(connection, day)
            self._known.add(day)
        except DBAPIError as error:
            self._again_at = time.monotonic() + _AGAIN
            logger.warning("%s could not be made: %s", name_of(day), error.orig)


def _create(connection: Connection, day: date) -> None:
    """Attached, not made in place: that takes no lock which would hold up other writers."""
    if _exists(connection, day):
        return
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    if _exists(connection, day):
        return
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    bounds = f"FROM ('{first_id(start)}') TO ('{first_id(start + timedelta(days=1))}')"
    name = name_of(day)
    for statement in (
        f"CREATE TABLE {name} (LIKE log_records INCLUDING DEFAULTS INCLUDING INDEXES)",
        f"ALTER TABLE log_records ATTACH PARTITION {name} FOR VALUES {bounds}",
    ):
        connection.execute(text(statement))


def _exists(connection: Connection, day: date) -> bool:
    found = connection.execute(text("SELECT to_regclass(:name)"), {"name": name_of(day)})
    return found.scalar_one() is not None
