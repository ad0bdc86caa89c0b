"""The execution logs over HTTP: the API and the pages' answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import httpx2
import orjson
import pytest

from cloche.database import Database
from cloche.logs.record import LogRecord
from tests.integration.logs_read.rows import made, put
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running, events_of


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Database]:
    opened = Database(stack.settings)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def client(dashboard: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=dashboard.url, timeout=20) as asking:
        yield asking


@pytest.fixture(scope="module")
def told(database: Database) -> list[LogRecord]:
    return list(
        put(
            database,
            [
                made("run started", after=-9, run_id="api/1", details={"status": "running"}),
                made("asked <b>nicely</b>", after=-8, run_id="api/1", step="ask", agent="a",
                     duration_ms=500.0),
                made("model timed out after 30 s", "error", after=-7, run_id="api/1", step="ask",
                     details={"exception": "TimeoutError", "traceback": "Traceback …"}),
                made("model timed out after 31 s", "error", after=-6, run_id="api/1", step="ask"),
            ],
        )
    )  # fmt: skip


def test_records_come_newest_first_by_the_page(
    client: httpx2.Client, told: list[LogRecord]
) -> None:
    first = client.get("/api/logs", params={"run": "api/1", "limit": 3}).json()
    assert [one["id"] for one in first["records"]] == [str(one.id) for one in told[:0:-1]]
    assert first["newer"] is None
    second = client.get(first["older"]).json()
    assert [one["message"] for one in second["records"]] == ["run started"]
    assert second["older"] is None
    assert [one["id"] for one in client.get(second["newer"]).json()["records"]] == [
        one["id"] for one in first["records"]
    ]


def test_one_record_and_none(client: httpx2.Client, told: list[LogRecord]) -> None:
    assert client.get(f"/api/logs/{told[2].id}").json() == told[2].as_dict()
    for unknown in (made().id, "nonsense"):
        answer = client.get(f"/api/logs/{unknown}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_trace_summary_and_errors_of_a_run(client: httpx2.Client, told: list[LogRecord]) -> None:
    run = "/api/logs/runs/api%2F1"
    trace = client.get(f"{run}/trace").json()
    assert trace["total"] == len(trace["records"]) == 4
    assert [step["path"] for step in trace["steps"]] == ["ask"]
    assert trace["steps"][0]["state"] == "failed"
    summary = client.get(f"{run}/summary").json()
    assert summary["levels"] == {"info": 2, "error": 2}
    assert summary["steps"][0]["p95"] == 500.0
    errors = client.get(f"{run}/errors").json()
    assert [(group["count"], group["pattern"]) for group in errors["groups"]] == [
        (2, "model timed out after [n] s")
    ]
    assert client.get("/api/logs/errors?agent=nobody").json()["groups"] == []
    assert client.get("/api/logs/runs/none/trace").status_code == 404


@pytest.mark.parametrize(
    ("query", "said"),
    [("level=loud", "level"), ("lebel=error", "Did you mean level"), ("limit=0", "limit"),
     ("since=soon", "an age as"), ("before=x", "before")],
)  # fmt: skip
def test_a_wrong_question_is_told(client: httpx2.Client, query: str, said: str) -> None:
    answer = client.get(f"/api/logs?{query}")
    assert answer.status_code == 422
    assert said in " ".join(str(value) for value in answer.json().values())
    page = client.get(f"/logs?{query}")
    assert page.status_code == 422
    assert "<form" in page.text


def test_an_export_is_whole_however_long(client: httpx2.Client, database: Database) -> None:
    put(database, [made("x" * 100, run_id="long", after=n / 1000) for n in range(6000)])
    answer = client.get("/api/logs/export?run=long")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert "attachment" in answer.headers["content-disposition"]
    assert sum(1 for line in answer.content.splitlines() if orjson.loads(line)) == 6000
    table = client.get("/api/logs/export?run=long&format=csv").text
    assert sum(1 for _ in csv.DictReader(io.StringIO(table))) == 6000


def test_an_export_that_nobody_reads_to_its_end_lets_go(
    client: httpx2.Client, database: Database
) -> None:
    with client.stream("GET", "/api/logs/export?run=long") as answer:
        next(answer.iter_bytes(1000))
    put(database, [made("written after it")])


def test_the_live_stream_sends_what_arrives_and_goes_on_after_an_id(
    client: httpx2.Client, database: Database
) -> None:
    stream = events_of(client, "/api/logs/live?run=live")
    put(database, [made("not this", run_id="other")])
    first, *_ = put(database, [made("one", run_id="live", after=0.5)])
    assert orjson.loads(next(stream)[1])["message"] == "one"
    stream.close()
    put(database, [made("two", run_id="live", after=0.6)])
    stream = events_of(client, f"/api/logs/live?run=live&after={first.id}")
    assert orjson.loads(next(stream)[1])["message"] == "two"
    stream.close()
    page = events_of(client, f"/logs/live?run=live&after={first.id}")
    name, rows = next(page)
    assert name == "rows"
    assert "two" in rows
    assert "one" not in rows
    page.close()


def test_what_is_logged_is_shown_as_text(client: httpx2.Client, told: list[LogRecord]) -> None:
    for path in ("/logs?run=api/1", "/logs/runs/api%2F1", f"/logs/records/{told[1].id}"):
        page = client.get(path)
        assert page.status_code == 200, path
        assert "asked &lt;b&gt;nicely&lt;/b&gt;" in page.text
        assert "<b>nicely" not in page.text
        assert 'style="' not in page.text  # the content security policy would refuse it


def test_an_address_keeps_what_says_something(client: httpx2.Client) -> None:
    answer = client.get("/logs?text=&level=error&since=2h&run=")
    assert answer.headers["hx-push-url"] == "/logs?level=error&since=2h"
    assert client.get("/logs/summary?since=2h").status_code == 200
    assert client.get("/logs/errors?since=2h").status_code == 200
    assert client.get("/logs/runs/none").status_code == 404
    assert client.get("/logs/records/none").status_code == 404
