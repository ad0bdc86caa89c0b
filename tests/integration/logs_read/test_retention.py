"""Old records leave, and nothing else."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text

from cloche.database import Database
from cloche.database.retention import BATCH
from cloche.logs.read.reader import LogReader
from cloche.logs.retention import expire
from cloche.logs.table import log_dead_letters
from tests.integration.logs_read.rows import made, make_day, put

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
KEEP = 30 * DAY


def _letter(database: Database, received: datetime) -> None:
    row = {"id": made().id, "received": received, "reason": "no record", "payload": b"{}"}
    with database.write() as connection:
        connection.execute(insert(log_dead_letters), [row])


def _left(reader: LogReader) -> set[str]:
    return {record.message for record in reader.page(limit=1000).records}


def test_old_records_and_dead_letters_leave(database: Database, reader: LogReader) -> None:
    put(database, [made("old", at=NOW - 32 * DAY), made("kept", at=NOW - 28 * DAY), made("new")])
    _letter(database, NOW - 32 * DAY)
    _letter(database, NOW - DAY)
    planned = expire(database, KEEP, dry_run=True)
    assert (planned.rows, planned.dead_letters, planned.dry_run) == (1, 1, True)
    assert _left(reader) == {"old", "kept", "new"}
    done = expire(database, KEEP)
    assert (done.rows, done.dead_letters) == (1, 1)
    assert _left(reader) == {"kept", "new"}
    again = expire(database, KEEP)
    assert (again.days, again.rows, again.dead_letters) == ((), 0, 0)


def test_many_are_deleted_in_bites_that_leave_no_word_behind(
    database: Database, reader: LogReader
) -> None:
    put(database, [made("old word", at=NOW - 40 * DAY, after=n) for n in range(BATCH + 10)])
    put(database, [made("word")])
    assert expire(database, KEEP).rows == BATCH + 10
    assert _left(reader) == {"word"}
    with database.read() as connection:
        if connection.dialect.name == "sqlite":
            index = "cloche_log_records_text"
            check = f"INSERT INTO {index} ({index}) VALUES ('integrity-check')"
            connection.execute(text(check))  # raises when index and table differ


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_day_is_dropped_as_a_whole_when_all_of_it_is_old(
    database: Database, reader: LogReader
) -> None:
    names = [make_day(database, NOW - days * DAY) for days in (33, 32, 30, 29, 0)]
    for days in (33, 32, 30, 29, 0):
        put(database, [made(f"day {days}", at=NOW - days * DAY) for _ in range(3)])
    with database.write() as connection:
        connection.execute(text("ANALYZE cloche_log_records"))
    planned = expire(database, KEEP, dry_run=True)
    assert planned.days == tuple(sorted(names[:2]))
    assert planned.day_rows == 6
    assert expire(database, KEEP).days == planned.days
    # The day that is 30 days old is not over everywhere in it: it stays until it is.
    assert _left(reader) == {"day 30", "day 29", "day 0"}
    with database.read() as connection:
        for name in names[:2]:
            assert connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_day_is_dropped_after_a_long_query_not_across_it(
    database: Database, reader: LogReader
) -> None:
    """Who reads meanwhile delays it; writers are not held up for longer than a second."""
    make_day(database, NOW - 40 * DAY)
    put(database, [made("old", at=NOW - 40 * DAY), made("new")])
    reading = reader.stream()
    next(reading)
    dropping = threading.Thread(target=expire, args=(database, KEEP))
    dropping.start()
    try:
        put(database, [made("written meanwhile")])
        assert dropping.is_alive()
    finally:
        reading.close()
        dropping.join(20)
    assert not dropping.is_alive()
    assert _left(reader) == {"new", "written meanwhile"}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_two_at_once_drop_each_day_once(database: Database) -> None:
    for days in range(40, 46):
        make_day(database, NOW - days * DAY)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            expire(database, KEEP)
        except BaseException as error:
            errors.append(error)

    both = [threading.Thread(target=run) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
    assert errors == []
    assert expire(database, KEEP, dry_run=True).days == ()
