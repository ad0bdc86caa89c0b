"""The read side of the execution log: pages, a run's trace, figures, errors, what is new."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, select

from cloche.database import Database
from cloche.database.pages import KeysetPage, keyset_page
from cloche.logs.read.conditions import columns, conditions
from cloche.logs.read.error_groups import ErrorReport, groups_of
from cloche.logs.read.filter import EVERYTHING, LogFilter
from cloche.logs.read.summary import Summary, summarise
from cloche.logs.read.trace import Trace, trace_of
from cloche.logs.record import LogRecord
from cloche.logs.table import log_records
from cloche.timestamps import first_id

#: Most records of a page; of a run that is traced; errors that are grouped at once.
PAGE, TRACED, GROUPED = 1000, 200_000, 200_000
#: Figures and errors are of this long, when nobody names a run, a task or a beginning.
RECENT = timedelta(days=1)
#: Rows that are fetched from the database at a time when many are read.
_BATCH = 2000


class LogReader:
    """Reads execution logs; safe to use from several threads. Raises DatabaseError.

    Migrates the database before it reads for the first time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._migrated = False

    def get(self, id: UUID) -> LogRecord | None:
        """The record of that id."""
        found = self._read(select(log_records).where(columns.id == id))
        return found[0] if found else None

    def page(
        self,
        wanted: LogFilter = EVERYTHING,
        *,
        limit: int = 100,
        before: UUID | None = None,
        after: UUID | None = None,
    ) -> KeysetPage[LogRecord, UUID]:
        """The newest records before the id ``before``, or the next ones after the id ``after``."""
        return keyset_page(
            select(log_records).where(*self._where(wanted)),
            columns.id,
            self._read,
            lambda record: record.id,
            limit=max(1, min(limit, PAGE)),
            before=before,
            after=after,
        )

    def newest(self, wanted: LogFilter, since: datetime, limit: int) -> tuple[LogRecord, ...]:
        """The newest ``limit`` records not older than ``since``, oldest first."""
        query = select(log_records).where(*self._where(wanted), columns.id >= first_id(since))
        return tuple(reversed(self._read(query.order_by(columns.id.desc()).limit(limit))))

    def stream(
        self, wanted: LogFilter = EVERYTHING, *, limit: int | None = None
    ) -> Generator[LogRecord, None, None]:
        """Records, oldest first, without holding more than a batch of them in memory."""
        query = select(log_records).where(*self._where(wanted)).order_by(columns.id).limit(limit)
        with closing(self._rows(query)) as rows:
            for row in rows:
                yield LogRecord.stored(*row)

    def trace(self, run_id: str) -> Trace | None:
        """A run told from its first 200,000 records; None if it has none."""
        wanted = LogFilter.of(run=run_id)
        if wanted.run is None:  # a blank one means any
            return None
        with closing(self.stream(wanted, limit=TRACED)) as records:
            return trace_of(run_id, records, most=TRACED)

    def summary(self, wanted: LogFilter = EVERYTHING) -> Summary:
        """Counts by level, category and agent, and how long each step takes: of a run, a task,
        a time, or the last 24 hours."""
        now, wanted = datetime.now(UTC), recent(wanted)
        with self._reading() as connection:
            return summarise(connection, self._where(wanted, now), *wanted.window(now))

    def errors(self, wanted: LogFilter = EVERYTHING) -> ErrorReport:
        """Errors that are alike as one line each, of the same records as `summary`; of the
        newest 200,000 errors if there are more."""
        now, wanted = datetime.now(UTC), recent(wanted)
        if wanted.level != "critical":
            wanted = wanted.model_copy(update={"level": "error"})
        query = (
            select(columns.id, columns.category, columns.step, columns.message)
            .where(*self._where(wanted, now))
            .order_by(columns.id.desc())
            .limit(GROUPED)
        )
        groups = groups_of(tuple(row) for row in self._rows(query))
        total = sum(group.count for group in groups)
        return ErrorReport(*wanted.window(now), total, total < GROUPED, groups)

    def _reading(self) -> AbstractContextManager[Connection]:
        if not self._migrated:
            self._database.migrate()
            self._migrated = True
        return self._database.read()

    def _where(self, wanted: LogFilter, now: datetime | None = None) -> list[ColumnElement[bool]]:
        return conditions(wanted, self._database.url.get_backend_name(), now)

    def _read(self, query: Select[Any]) -> list[LogRecord]:
        with self._reading() as connection:
            return [LogRecord.stored(*row) for row in connection.execute(query)]

    def _rows(self, query: Select[Any]) -> Generator[Any, None, None]:
        with self._reading() as connection:
            options = {"stream_results": True, "yield_per": _BATCH}
            with connection.execute(query, execution_options=options) as rows:
                yield from rows


def recent(wanted: LogFilter) -> LogFilter:
    """``wanted``, bounded to the last 24 hours if it could mean everything there is."""
    if wanted.run or wanted.task or wanted.since:
        return wanted
    return wanted.model_copy(update={"since": RECENT})
