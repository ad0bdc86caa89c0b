"""Lines into the database: each record once, poison aside, days in their partitions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text

from cloche import Settings
from cloche.database import Database
from cloche.database.partitions import name_of
from cloche.errors import DatabaseError
from cloche.logs.codec import Limits, encode
from cloche.logs.record import LogRecord, stamp
from cloche.logs.table import RECORDS, log_dead_letters, log_records
from cloche.logs.write.writer import Writer, Written
from cloche.testing import PostgresProcess
from cloche.timestamps import micros

LIMITS = Limits(10_000, 10_000)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with an empty database of each kind."""
    url = None if request.param == "sqlite" else request.getfixturevalue("database_url")
    return Settings.model_validate({"run_dir": tmp_path, "database": {"url": url}})


@pytest.fixture
def writer(settings: Settings) -> Iterator[Writer]:
    own = Writer(settings)
    yield own
    own.close()


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    own = Database(settings)
    yield own
    own.close()


def line(message: str = "hello", at: datetime | None = None, **fields: Any) -> bytes:
    now, serial = stamp()
    record = LogRecord(micros(at) if at else now, serial, "info", "test", None, message, **fields)
    return encode(record, LIMITS).rstrip(b"\n")


def stored(database: Database) -> list[LogRecord]:
    query = select(*(log_records.c[name] for name in COLUMNS)).order_by(log_records.c.id)
    with database.read() as connection:
        return [LogRecord.stored(*row) for row in connection.execute(query)]


COLUMNS = [column.name for column in log_records.columns]


def reasons(database: Database) -> list[tuple[str, bytes]]:
    columns = log_dead_letters.c.reason, log_dead_letters.c.payload
    with database.read() as connection:
        return [
            (reason, bytes(payload)) for reason, payload in connection.execute(select(*columns))
        ]


def test_what_is_written_is_what_was_logged(writer: Writer, database: Database) -> None:
    records = [
        LogRecord(*stamp(), "debug", "a", None, ""),
        LogRecord(*stamp(), "critical", "日本語", "s\t\n\\N", '\\."\t\r\n🐍', "t", "r", "c", "x"),
        LogRecord(
            *stamp(),
            "info",
            "a",
            "s",
            "m",
            details={"deep": {"list": [1, 2.5, None, True]}},
            duration_ms=0.25,
        ),
    ]
    lines = [encode(record, LIMITS) for record in records]
    assert writer.write(lines) == Written(rows=3)
    assert stored(database) == records


def test_a_batch_that_comes_again_changes_nothing(writer: Writer, database: Database) -> None:
    lines = [line(str(number)) for number in range(100)]
    assert writer.write(lines[:60]) == Written(rows=60)
    assert writer.write(lines) == Written(rows=40, repeated=60)
    assert writer.write(lines, careful=True) == Written(repeated=100)
    twice = [line("a"), line("b")]
    assert writer.write([*twice, *twice]) == Written(rows=2, repeated=2)
    assert len(stored(database)) == 102


def test_poison_is_set_aside_and_the_rest_stored(writer: Writer, database: Database) -> None:
    bad = [b"not json", line("x").replace(b'"x"', b'"\\u0000"')]
    assert writer.write([line("1"), bad[0], line("2"), bad[1]]) == Written(rows=2, dead=2)
    assert writer.write([bad[0]]) == Written(dead=1)
    found = {payload: reason for reason, payload in reasons(database)}
    assert len(found) == 2
    assert "not JSON" in found[bad[0]]
    assert "NUL" in found[bad[1]]


def test_what_only_the_database_refuses_is_found_by_halving(
    writer: Writer, database: Database
) -> None:
    writer.write([line("first")])
    with database.write() as connection:
        # A rule of somebody else's: on SQLite and PostgreSQL alike.
        if database.url.get_backend_name() == "sqlite":
            connection.execute(
                text(
                    "CREATE TRIGGER picky BEFORE INSERT ON cloche_log_records "
                    "WHEN NEW.message = 'no' BEGIN SELECT RAISE(ABORT, 'not that one'); END"
                )
            )
        else:
            connection.execute(
                text("CREATE UNIQUE INDEX picky ON cloche_log_records (id, (1 / length(message)))")
            )
    refused = "no" if database.url.get_backend_name() == "sqlite" else ""
    lines = [line(str(number)) for number in range(50)] + [line(refused)]
    lines += [line(str(number)) for number in range(50, 99)]
    assert writer.write(lines) == Written(rows=99, dead=1)
    [(reason, payload)] = reasons(database)
    assert payload == lines[50]
    assert "not that one" in reason or "division by zero" in reason


def test_the_text_index_knows_every_message(writer: Writer, database: Database) -> None:
    writer.write([line("retrieving documents"), line("calling the model")])
    writer.write([line("documents validated")])
    if database.url.get_backend_name() == "sqlite":
        query = (
            "SELECT count(*) FROM cloche_log_records_text "
            "WHERE cloche_log_records_text MATCH 'documents'"
        )
    else:
        query = (
            "SELECT count(*) FROM cloche_log_records "
            "WHERE to_tsvector('simple', cloche_words(message)) "
            "@@ plainto_tsquery('simple', 'documents')"
        )
    with database.write() as connection:
        assert connection.execute(text(query)).scalar_one() == 2
        connection.execute(log_records.delete().where(log_records.c.message.like("ret%")))
        assert connection.execute(text(query)).scalar_one() == 1


def test_writers_at_the_same_time_share_the_work(settings: Settings, database: Database) -> None:
    batches = [[line(f"{number}-{i}") for i in range(50)] for number in range(20)]

    def work(order: int) -> None:
        own = Writer(settings)
        for batch in batches[order:] + batches[:order]:
            own.write(batch)
        own.close()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, [0, 7, 14]))
    assert len(stored(database)) == 1000


def partitions(database: Database) -> dict[str, int]:
    query = text("SELECT tableoid::regclass::text, count(*) FROM cloche_log_records GROUP BY 1")
    with database.read() as connection:
        return {name: count for name, count in connection.execute(query)}  # noqa: C416


@pytest.fixture
def on_postgresql(postgres: PostgresProcess, database_url: str, tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"run_dir": tmp_path, "database": {"url": SecretStr(database_url)}}
    )


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Writer, Database]]:
    writer, database = Writer(settings), Database(settings)
    yield writer, database
    writer.close()
    database.close()


def test_a_day_is_a_partition_and_absurd_days_have_a_net(on_postgresql: Settings) -> None:
    now = datetime.now(UTC)
    week_ago, long_ago = now - timedelta(days=7), now - timedelta(days=400)
    with opened(on_postgresql) as (writer, database):
        writer.write([line(at=now), line(at=week_ago), line(at=long_ago)])
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        writer.write([line(at=midnight), line(at=midnight - timedelta(microseconds=1))])
        assert partitions(database) == {
            name_of(RECORDS, now.date()): 2,
            name_of(RECORDS, (midnight - timedelta(days=1)).date()): 1,
            name_of(RECORDS, week_ago.date()): 1,
            "cloche_log_records_default": 1,
        }
        with database.read() as connection:
            tomorrow = name_of(RECORDS, (now + timedelta(days=1)).date())
            found = connection.execute(select(func.to_regclass(tomorrow))).scalar_one()
        assert found == tomorrow, "made ahead of time"


def test_a_partition_that_cannot_be_made_costs_no_record(on_postgresql: Settings) -> None:
    now = datetime.now(UTC)
    early = now - timedelta(days=3)
    with opened(on_postgresql) as (writer, database):
        with database.write() as connection:  # a row of that day is in the net already
            connection.execute(
                text(
                    "INSERT INTO cloche_log_records_default (id, time, level, category, message) "
                    "VALUES (:id, :time, 20, 'x', 'x')"
                ),
                {"id": LogRecord(micros(early), 1, "info", "", None, "").id, "time": early},
            )
        assert writer.write([line(at=early)]) == Written(rows=1)
        assert partitions(database) == {"cloche_log_records_default": 2}


def test_writers_make_partitions_at_the_same_time(on_postgresql: Settings) -> None:
    days = [datetime.now(UTC) - timedelta(days=number) for number in range(10)]

    def work(number: int) -> int:
        with opened(on_postgresql) as (writer, _):
            return writer.write([line(at=day) for day in days]).rows

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [10] * 4
    with opened(on_postgresql) as (_, database):
        assert partitions(database) == {name_of(RECORDS, day.date()): 4 for day in days}


def test_a_database_that_is_away_is_told_and_comes_back(tmp_path: Path) -> None:
    with PostgresProcess() as own:
        settings = Settings.model_validate(
            {"run_dir": tmp_path, "database": {"url": SecretStr(own.url)}}
        )
        with opened(settings) as (writer, database):
            lines = [line(str(number)) for number in range(10)]
            writer.write(lines[:5])
            own.kill()
            with pytest.raises(DatabaseError):
                writer.write(lines)
            own.start()
            assert writer.write(lines) == Written(rows=5, repeated=5)
            assert len(stored(database)) == 10
