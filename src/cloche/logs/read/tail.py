"""Records as they arrive.

A record gets its id where it is made and arrives up to seconds later, so the newest id is no
place to go on from: what was made before it may still come. Each look therefore goes back over
the last seconds, and remembers what it has shown of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cloche.logs.read.conditions import moment_of
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.logs.record import LogRecord

#: How long a record may be under way and still be shown. What arrives later (from a spool, after
#: an outage) is found by asking, not by watching.
UNDER_WAY = timedelta(seconds=30)
#: Most records of a look: more than anybody reads in a second.
MAX_RECORDS = 500


@dataclass(frozen=True, slots=True)
class News:
    """What is new, oldest first. ``skipped``: there was more than a look holds."""

    records: tuple[LogRecord, ...]
    skipped: bool


class RecordTail:
    """What one viewer has seen. Begins after the id ``after``, or now."""

    def __init__(self, after: UUID | None = None) -> None:
        self._after = after
        self._from = self._looked = datetime.now(UTC) if after is None else moment_of(after)
        self._seen: set[UUID] = set()
        self._began = False

    def reach(self) -> datetime:
        """Records since then may be new."""
        return self._looked - UNDER_WAY

    def news(self, found: Iterable[LogRecord], at: datetime, *, full: bool) -> News:
        """What is new among the records since `reach`, as they were found at the time ``at``;
        ``full`` says that they are only the newest of those."""
        records = tuple(found)
        new = tuple(record for record in records if self._is_new(record))
        self._looked = at
        reach = self.reach()
        self._seen = {id for id in self._seen if moment_of(id) >= reach}
        self._seen.update(record.id for record in records)
        self._began = True
        return News(new, skipped=full and len(new) == len(records))

    def saw(self, record: LogRecord) -> None:
        self._seen.add(record.id)

    def _is_new(self, record: LogRecord) -> bool:
        if record.id in self._seen:
            return False
        if self._began:
            return True  # it was under way until now
        return record.time >= self._from if self._after is None else record.id > self._after


def look(reader: LogReader, wanted: LogFilter, tail: RecordTail) -> News:
    """Ask for what is new."""
    now = datetime.now(UTC)
    found = reader.newest(wanted, tail.reach(), MAX_RECORDS)
    return tail.news(found, now, full=len(found) == MAX_RECORDS)
