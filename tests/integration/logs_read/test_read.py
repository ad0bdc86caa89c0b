"""Questions to the execution log, on SQLite and on PostgreSQL."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from cloche.database import Database
from cloche.logs.read.document import exported
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.logs.record import LogRecord
from cloche.plain import search_words
from tests.integration.logs_read.rows import NOON, made, put

DAY = timedelta(days=1)


def asked(reader: LogReader, **fields: Any) -> list[str]:
    """The messages a filter finds, oldest first."""
    return [record.message for record in reader.page(LogFilter.of(**fields)).records][::-1]


@pytest.fixture
def story(database: Database) -> None:
    put(
        database,
        [
            made("plan begins", at=NOON, run_id="r1", task_id="t1", step="plan", agent="architect"),
            made("asked the model", "debug", at=NOON, after=1, run_id="r1", step="plan/ask",
                 category="llm", agent="architect", concept_id="c1"),
            made("disk 93% full", "warning", at=NOON, after=2, category="host"),
            made("connection to 10.0.0.5:5432 refused", "error", at=NOON, after=3, run_id="r1",
                 task_id="t1", step="planet"),
            made("order-000042 is lost", "critical", at=NOON, after=4, run_id="r2"),
        ],
    )  # fmt: skip


@pytest.mark.usefixtures("story")
@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"run": "r1"}, [0, 1, 3]),
        ({"task": "t1"}, [0, 3]),
        ({"concept": "c1"}, [1]),
        ({"level": "warning"}, [2, 3, 4]),
        ({"level": "critical"}, [4]),
        ({"category": "llm"}, [1]),
        ({"agent": "architect"}, [0, 1]),
        ({"step": "plan"}, [0, 1]),  # and below, but not "planet"
        ({"step": "plan/ask"}, [1]),
        ({"since": "2026-11-20T12:00:02Z"}, [2, 3, 4]),
        ({"until": "2026-11-20T12:00:02"}, [0, 1]),
        ({"since": "2026-11-20T13:00:01+01:00", "until": "2026-11-20T12:00:03Z"}, [1, 2]),
        ({"text": "refused"}, [3]),
        ({"text": "REFUSED connection"}, [3]),
        ({"text": '"connection refused"'}, []),
        ({"text": '"disk 93%"'}, [2]),
        ({"text": "10.0.0.5:5432"}, [3]),
        ({"text": "order-000042"}, [4]),
        ({"text": "is lost OR"}, []),
        ({"text": '"'}, [0, 1, 2, 3, 4]),
        ({"text": "model", "run": "r1", "level": "debug", "category": "llm"}, [1]),
        ({"run": "nobody"}, []),
    ],
)
def test_each_filter_finds_what_it_says(
    reader: LogReader, fields: dict[str, str], found: list[int]
) -> None:
    everything = asked(reader)
    assert len(everything) == 5
    assert asked(reader, **fields) == [everything[number] for number in found]


@pytest.mark.usefixtures("story")
def test_a_wildcard_in_a_step_is_a_letter(reader: LogReader) -> None:
    assert asked(reader, step="pl%") == []
    assert asked(reader, step="pla_") == []


def test_a_record_comes_back_as_it_was_written(database: Database, reader: LogReader) -> None:
    (one,) = put(
        database,
        [made("ünïcode", "error", run_id="r", task_id="t", concept_id="c", agent="a", step="s",
              details={"deep": [1, {"x": None}], "text": "„“"}, duration_ms=12.5)],
    )  # fmt: skip
    assert reader.get(one.id) == one
    assert reader.get(made().id) is None
    assert orjson.loads(orjson.dumps(one.as_dict()))["id"] == str(one.id)


def test_pages_go_back_and_forth_and_miss_nothing(database: Database, reader: LogReader) -> None:
    put(database, [made(str(number), after=number / 1000) for number in range(25)])
    seen: list[list[str]] = []
    before = None
    while True:
        page = reader.page(limit=10, before=before)
        seen.append([record.message for record in page.records])
        if page.older is None:
            break
        before = page.older
    assert [len(one) for one in seen] == [10, 10, 5]
    assert [one for messages in seen for one in messages] == [
        str(number) for number in reversed(range(25))
    ]
    back = reader.page(limit=10, after=page.newer)
    assert [record.message for record in back.records] == seen[1]
    assert back.older is not None
    first = reader.page(limit=10, after=back.newer)
    assert [record.message for record in first.records] == seen[0]
    assert first.newer is None
    # What comes meanwhile moves no page.
    put(database, [made("new", after=1)])
    again = reader.page(limit=10, before=reader.page(limit=11).older)
    assert [record.message for record in again.records] == seen[1]


def test_a_summary_counts_and_times_what_the_filter_finds(
    database: Database, reader: LogReader
) -> None:
    put(database, [made(step="draft", duration_ms=float(n), run_id="r") for n in range(1, 101)])
    put(database, [made("no", "error", step="draft", duration_ms=1000.0, agent="writer",
                        category="llm", run_id="r"),
                   made("once", step="plan", duration_ms=7.0, run_id="r"),
                   made("untimed", step="plan", run_id="r"),
                   made("another run", run_id="other")])  # fmt: skip
    found = reader.summary(LogFilter(run="r"))
    assert found.total == 103
    assert found.levels == {"info": 102, "error": 1}
    assert found.categories == {"test": 102, "llm": 1}
    assert found.agents == {"writer": 1}
    draft, plan = found.steps
    assert (draft.step, draft.count, draft.errors) == ("draft", 101, 1)
    assert (draft.p50, draft.p95, draft.slowest, draft.total) == (51.0, 96.0, 1000.0, 6050.0)
    assert (plan.step, plan.count, plan.p50, plan.p95) == ("plan", 1, 7.0, 7.0)


def test_a_summary_of_everything_is_of_the_last_day(database: Database, reader: LogReader) -> None:
    put(database, [made("old", at=datetime.now(UTC) - 2 * DAY), made("new")])
    found = reader.summary()
    assert found.total == 1
    assert found.since is not None
    assert reader.summary(LogFilter(since=3 * DAY)).total == 2
    assert reader.summary(LogFilter(run="nobody")).levels == {}


def test_errors_that_are_alike_are_one_line(database: Database, reader: LogReader) -> None:
    now = datetime.now(UTC)
    put(
        database,
        [made(f"connection to 10.0.0.{n}:5432 refused (request 8f3a{n:04x}bc)", "error",
              at=now, after=n - 60, step="fetch", category="http") for n in range(30)],
    )  # fmt: skip
    put(database, [made("out of memory", "critical", after=-120), made("all is well")])
    report = reader.errors()
    assert report.total == 31
    assert report.complete
    refused, memory = report.groups
    assert (refused.count, refused.category, refused.step) == (30, "http", "fetch")
    assert refused.pattern == "connection to [n] refused (request [hex])"
    example = reader.get(refused.example)
    assert example is not None
    assert example.message == refused.message
    assert "10.0.0.29" in refused.message
    assert refused.last - refused.first == timedelta(seconds=29)
    assert memory.count == 1
    assert reader.errors(LogFilter(level="critical")).total == 1
    assert reader.errors(LogFilter(step="elsewhere")).groups == ()


def test_an_export_holds_every_field_and_no_formula(database: Database, reader: LogReader) -> None:
    lines = ['=HYPERLINK("http://x")', "with, comma", 'and "quote"', "two\nlines"]
    records = put(database, [made(line, details={"n": 1}, after=n) for n, line in enumerate(lines)])
    read = b"".join(exported(reader.stream(), "jsonl")).splitlines()
    assert [orjson.loads(line) for line in read] == [record.as_dict() for record in records]
    table = b"".join(exported(reader.stream(), "csv")).decode()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["message"] for row in rows] == ["'" + lines[0], *lines[1:]]
    assert rows[0]["details"] == '{"n":1}'
    assert rows[0]["id"] == str(records[0].id)


def test_an_export_streams(database: Database, reader: LogReader) -> None:
    """Half of it is there before the other half is read; a reader that stops leaves no lock."""
    put(database, [made("x" * 200, after=n / 1000) for n in range(5000)])
    pieces = exported(reader.stream(), "jsonl")
    assert next(pieces).count(b"\n") < 1000
    pieces.close()
    put(database, [made("still writable")])
    assert sum(1 for _ in reader.stream()) == 5001


def test_a_trace_tells_steps_durations_and_silence(database: Database, reader: LogReader) -> None:
    def step(name: str, begin: float, end: float, **fields: Any) -> list[LogRecord]:
        opened = {"status": "started"}
        return [
            made(f"{name} started", "debug", at=NOON, after=begin, step=name, run_id="r",
                 details=opened, **fields),
            made(f"{name} done", at=NOON, after=end, step=name, run_id="r",
                 details={"status": "done"}, duration_ms=1000 * (end - begin), **fields),
        ]  # fmt: skip

    put(
        database,
        [
            made("run started", at=NOON, run_id="r", details={"status": "running"}),
            *step("plan", 0.1, 2.0, agent="architect"),
            *step("write", 2.1, 9.0),
            *step("write/draft", 2.2, 3.0, concept_id="c1"),
            *step("write/draft", 2.3, 8.0, concept_id="c2"),
            made("publish started", at=NOON, after=15, run_id="r", step="publish",
                 details={"status": "started"}),
            made("refused", "error", at=NOON, after=15.5, run_id="r", step="publish",
                 duration_ms=500.0, details={"status": "failed"}),
            made("run failed", "error", at=NOON, after=15.6, run_id="r",
                 details={"status": "failed"}),
            made("another", at=NOON, after=60, run_id="r9"),
        ],
    )  # fmt: skip
    trace = reader.trace("r")
    assert trace is not None
    assert (trace.total, trace.complete, trace.status) == (12, True, "failed")
    assert trace.seconds == pytest.approx(15.6)
    assert [step.path for step in trace.steps] == ["plan", "write", "write/draft", "publish"]
    plan, write, draft, publish = trace.steps
    assert (write.depth, draft.depth, draft.name) == (0, 1, "draft")
    assert plan.busy_ms == pytest.approx(1900)
    assert draft.busy_ms == pytest.approx(800 + 5700)
    assert [span.label for span in draft.spans] == ["c1", "c2"]
    assert [step.state for step in trace.steps] == ["done", "done", "done", "failed"]
    assert publish.errors == 1
    assert [round(gap.seconds, 1) for gap in trace.gaps] == [6.0]
    assert trace.levels["error"] == 2
    assert reader.trace("nobody") is None


_SPOKEN = [
    "用户42登录失败，数据库连接超时",
    "连接Redis失败",
    "データベースへの接続に失敗しました",
    "ไม่สามารถเชื่อมต่อฐานข้อมูลได้",
    "데이터베이스를 찾을 수 없습니다",
    "Zürich: naïve café, El Niño",
    "cafe\u0301 au lait",  # decomposed
    "plain words",
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("连接", [0, 1]),
        ("登录失败", [0]),
        ("失败", [0, 1]),
        ("数据库 超时", [0]),
        ('"连接超时"', [0]),
        ("接连", []),
        ("redis", [1]),
        ("42", [0]),
        ("用户42登录", [0]),
        ("データベース", [2]),
        ("接続", [2]),
        ("ヘ", []),
        ("ฐานข้อมูล", [3]),
        ("เชื่อมต่อ", [3]),
        ("데이터베이스", [4]),
        ("zurich", [5]),
        ("Zürich", [5]),
        ("cafe", [5, 6]),
        ("CAFÉ", [5, 6]),
        ("nino naive", [5]),
        ("words", [7]),
        ("word", []),
    ],
)
def test_words_are_found_in_every_language(
    database: Database, reader: LogReader, text: str, found: list[int]
) -> None:
    put(database, [made(message, after=number) for number, message in enumerate(_SPOKEN)])
    assert asked(reader, text=text) == [_SPOKEN[number] for number in found]


def test_both_databases_make_the_same_words(database: Database) -> None:
    odd = [*_SPOKEN, "ấẤ ﬁ ß ǅ ø İ", "が\u304b\u3099ｶﾞ", "\U00020000\U0001f600\u0300", "ที่ไม่มี ລາວ"]
    with database.read() as connection:
        for one in odd:
            query = text("SELECT cloche_words(:one)")
            assert connection.execute(query, {"one": one}).scalar_one() == search_words(one)
