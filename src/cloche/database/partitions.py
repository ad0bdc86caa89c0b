"""Tables of PostgreSQL partitioned by day (UTC): made ahead of time, dropped when they are old.

The key of such a table is an id that begins with its time (`cloche.timestamps`), so that a day is a
range of ids.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from cloche.backoff import Backoff
from cloche.database.engine import Database
from cloche.errors import DatabaseError
from cloche.timestamps import first_id

logger = logging.getLogger(__name__)

#: Days back for which a partition is made on demand, for what waited in a spool; rows that are
#: older (or of a producer whose clock is wrong) go to the default partition.
BACK = timedelta(days=31)
#: The same ahead: tomorrow's is made today.
AHEAD = timedelta(days=2)
#: Seconds until a partition that could not be made is tried again.
_RETRY_INTERVAL = 60.0
#: Names the lock of partition making among a server's advisory locks.
_ADVISORY_LOCK = 0xC10C4F
_LOCK_TIMEOUT, _TRIES = "1s", 6
#: Any constant does; it names this work among a server's advisory locks.
_DROP_LOCK = 0xC10C4E7
#: The partitions of a table: quoted name, bounds as SQL, about how many rows.
_PARTITIONS = text(
    "SELECT c.oid::regclass::text, coalesce(pg_get_expr(c.relpartbound, c.oid), ''),"
    " greatest(c.reltuples, 0)::bigint"
    " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = to_regclass(:table) ORDER BY 1"
)
_UPPER = re.compile(r"TO \('([0-9a-f-]{36})'\)")


def name_of(table: str, day: date) -> str:
    """The partition of a day (UTC)."""
    return f"{table}_{day:%Y%m%d}"


class DayPartitions:
    """Makes what is missing. A failure costs nothing but the default partition's rows."""

    def __init__(self, database: Database, table: str) -> None:
        self._database = database
        self._table = table
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
                _create(connection, self._table, day)
            self._known.add(day)
        except DBAPIError as error:
            self._again_at = time.monotonic() + _RETRY_INTERVAL
            logger.warning("%s could not be made: %s", name_of(self._table, day), error.orig)


def _create(connection: Connection, table: str, day: date) -> None:
    """Attached, not made in place: that takes no lock which would hold up other writers."""
    name = name_of(table, day)
    if _exists(connection, name):
        return
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    if _exists(connection, name):
        return
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    bounds = f"FROM ('{first_id(start)}') TO ('{first_id(start + timedelta(days=1))}')"
    for statement in (
        f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES)",
        f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES {bounds}",
    ):
        connection.execute(text(statement))


def _exists(connection: Connection, name: str) -> bool:
    found = connection.execute(text("SELECT to_regclass(:name)"), {"name": name})
    return found.scalar_one() is not None


@dataclass(frozen=True, slots=True)
class Partition:
    """``name`` is quoted, ``bound`` its bounds as SQL, ``rows`` about how many it has."""

    name: str
    bound: str
    rows: int

    def before(self, id: UUID) -> bool:
        """Whether all its ids are less."""
        upper = _UPPER.search(self.bound)
        return upper is not None and UUID(upper[1]) <= id

    @property
    def default(self) -> bool:
        """Whether it takes the rows of no day."""
        return self.bound == "DEFAULT"


def partitions_of(database: Database, table: str) -> list[Partition]:
    """The partitions of ``table``. Raises DatabaseError."""
    with database.read() as connection:
        found = connection.execute(_PARTITIONS, {"table": table})
        return [Partition(name, bound, rows) for name, bound, rows in found]


def drop(database: Database, table: str, name: str) -> None:
    """Detach a partition and drop it, which takes as long for a million records as for one.

    Both need the table for themselves for a moment. Who waits for a lock holds up everybody
    behind him, so it is given up after a second, and tried again when others have had a turn.
    """
    for wait in (*Backoff(0.2, 2.0, 3.0, 0.5).delays(_TRIES), None):
        try:
            with database.write() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_DROP_LOCK})"))
                if not connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}):
                    return  # somebody else was quicker
                connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {name}"))
                connection.execute(text(f"DROP TABLE {name}"))
                return
        except DatabaseError:
            if wait is None:
                raise
            time.sleep(wait)
