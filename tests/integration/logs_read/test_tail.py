"""Records as they arrive, also those that were under way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cloche.database import Database
from cloche.logs.read.filter import EVERYTHING, LogFilter
from cloche.logs.read.reader import LogReader
from cloche.logs.read.tail import MAX_RECORDS, RecordTail, look
from tests.integration.logs_read.rows import made, put


def _said(reader: LogReader, tail: RecordTail, wanted: LogFilter = EVERYTHING) -> list[str]:
    return [record.message for record in look(reader, wanted, tail).records]


def test_each_record_is_shown_once_in_order_however_late_it_comes(
    database: Database, reader: LogReader
) -> None:
    put(database, [made("before", after=-10)])
    tail = RecordTail()
    assert _said(reader, tail) == []
    put(database, [made("two", after=0.2), made("one", after=0.1)])
    assert _said(reader, tail) == ["one", "two"]
    assert _said(reader, tail) == []
    put(database, [made("was under way for 20 s", after=-20), made("three", after=0.3)])
    assert _said(reader, tail) == ["was under way for 20 s", "three"]
    assert _said(reader, tail) == []


def test_it_goes_on_after_a_record(database: Database, reader: LogReader) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    seen, *_ = put(database, [made("seen", at=hour_ago), made("missed", at=hour_ago, after=5)])
    put(database, [made("now")])
    assert _said(reader, RecordTail(seen.id)) == ["missed", "now"]


def test_only_what_the_filter_wants(database: Database, reader: LogReader) -> None:
    tail = RecordTail()
    put(database, [made("quiet", after=0.1), made("loud", "error", after=0.1)])
    assert _said(reader, tail, LogFilter(level="error")) == ["loud"]


def test_more_than_anybody_reads_is_said_to_be_left_out(
    database: Database, reader: LogReader
) -> None:
    tail = RecordTail()
    put(database, [made(str(n), after=n / 10_000) for n in range(MAX_RECORDS + 50)])
    news = look(reader, EVERYTHING, tail)
    assert news.skipped
    assert len(news.records) == MAX_RECORDS
    assert news.records[-1].message == str(MAX_RECORDS + 49)
