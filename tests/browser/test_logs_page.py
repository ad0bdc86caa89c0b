"""What an operator sees of the execution logs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from cloche.database import Database
from cloche.logs.record import LogRecord
from tests.browser.conftest import Open
from tests.browser.pictures import picture
from tests.integration.logs_read.rows import made, put
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Database]:
    opened = Database(stack.settings)
    opened.migrate()
    yield opened
    opened.close()


def _step(
    name: str, begin: float, end: float, status: str = "done", **more: str
) -> list[LogRecord]:
    began = datetime.now(UTC) - timedelta(seconds=120)
    level = "error" if status == "failed" else "warning" if status == "retry" else "info"
    said = f"{name} failed: TimeoutError: no answer of model-7 in 5 s" if level != "info" else ""
    return [
        made(f"{name} started", "debug", at=began, after=begin, step=name, run_id="roadmap-42",
             category="workflow", details={"status": "started"}, **more),
        made(said or f"{name} done", level, at=began, after=end, step=name, run_id="roadmap-42",
             category="workflow", duration_ms=1000 * (end - begin), **more,
             details={"status": status, **({"exception": "TimeoutError", "traceback":
                      "Traceback (most recent call last):\n  TimeoutError"} if said else {})}),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(database: Database) -> str:
    began = datetime.now(UTC) - timedelta(seconds=120)
    about: dict[str, Any] = {
        "run_id": "roadmap-42",
        "task_id": "0b1c5bd0-3a0e-4a9a-9d2a-6f1f7f0f5c11",
    }
    put(
        database,
        [
            made("roadmap Gardening started", at=began, category="workflow",
                 details={"status": "running"}, **about),
            *_step("plan", 0.2, 6.0, agent="architect"),
            made("6 goals in 3 weeks", at=began, after=6.1, category="workflow", **about),
            *_step("write", 6.2, 44.0),
            *_step("write/draft", 6.4, 19.0, agent="writer", concept_id="soil"),
            *_step("write/draft", 6.4, 11.0, "retry", agent="writer", concept_id="seeds"),
            *_step("write/draft", 12.0, 29.0, agent="writer", concept_id="seeds"),
            *_step("write/review", 30.0, 43.0, agent="reviewer", concept_id="seeds"),
            made("asked model-7 for 1,204 tokens", "debug", at=began, after=15, category="llm",
                 step="write/draft", agent="writer", duration_ms=3210.0,
                 details={"model": "model-7", "tokens": 1204}, **about),
            *_step("publish", 70.0, 75.0, "failed", agent="publisher"),
            made("roadmap Gardening failed: TimeoutError", "error", at=began, after=75.1,
                 category="workflow", details={"status": "failed"}, duration_ms=75100.0, **about),
        ],
    )  # fmt: skip
    return "roadmap-42"


def test_filters_stand_in_the_address_and_can_be_taken_away(
    dashboard: Running, run: str, open_page: Open
) -> None:
    page = open_page(f"{dashboard.url}/logs")
    page.keyboard.press("/")
    page.keyboard.type("answer")
    page.keyboard.press("Enter")
    expect(page.locator("#rows tr")).to_have_count(2)
    expect(page).to_have_url(f"{dashboard.url}/logs?text=answer")
    page.locator("#f-level").select_option("error")
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page).to_have_url(f"{dashboard.url}/logs?level=error&text=answer")
    page.get_by_title("Remove this filter").filter(has_text="text").click()
    expect(page.locator("#rows tr")).to_have_count(2)
    expect(page.locator("#f-text")).to_have_value("")
    page.locator("#rows").get_by_text("publish failed").click()
    expect(page.locator("pre.block").first).to_contain_text("Traceback")
    picture(page, "logs-record")


def test_a_run_is_a_timeline_of_its_steps(dashboard: Running, run: str, open_page: Open) -> None:
    page = open_page(f"{dashboard.url}/logs?run={run}")
    picture(page, "logs-light")
    page.locator("#rows a.mono").first.click()
    expect(page.get_by_role("status")).to_have_text("Failed")
    lanes = page.locator("table.lanes tbody tr")
    expect(lanes).to_have_count(5)
    expect(lanes.nth(1)).to_contain_text("write")
    expect(lanes.nth(2)).to_contain_text("1 retry")
    expect(page.locator("table.lanes")).to_contain_text("Failed")
    bar = lanes.nth(4).locator("rect.bar.bad")
    assert (bar.bounding_box() or {"width": 0})["width"] > 10
    picture(page, "logs-trace")
    page.get_by_role("link", name="Summary").click()
    expect(page.locator("table")).to_contain_text("write/draft")
    picture(page, "logs-summary")
    page.get_by_role("link", name="Errors", exact=True).click()
    expect(page.locator("table")).to_contain_text("no answer of model-[n] in [n] s")
    picture(page, "logs-errors")


def test_records_appear_while_one_looks(
    dashboard: Running, database: Database, open_page: Open
) -> None:
    page = open_page(f"{dashboard.url}/logs?run=watched")
    expect(page.locator(".none")).to_contain_text("Nothing fits")
    picture(page, "logs-empty")
    page.get_by_role("switch").click()
    expect(page.get_by_role("switch")).to_have_text("Live: on")
    expect(page.locator("#waiting")).to_be_visible()
    for number in range(3):
        put(database, [made(f"line {number}", run_id="watched", after=0.2)])
        expect(page.locator("#rows tr").first).to_contain_text(f"line {number}")
    expect(page.locator("#rows tr")).to_have_count(3)
    expect(page.locator("#waiting")).to_have_count(0)
    picture(page, "logs-live")
    page.get_by_role("switch").click()
    expect(page.get_by_role("switch")).to_have_text("Live: off")
    expect(page.locator("#rows tr")).to_have_count(3)


def test_pages_lead_back_in_time(dashboard: Running, database: Database, open_page: Open) -> None:
    put(database, [made(f"number {n}", run_id="many", after=n / 1000) for n in range(250)])
    page = open_page(f"{dashboard.url}/logs?run=many")
    expect(page.locator("#rows tr").first).to_contain_text("number 249")
    picture(page, "logs-many")
    page.get_by_role("link", name="Older").click()
    expect(page.locator("#rows tr").first).to_contain_text("number 149")
    page.get_by_role("link", name="Older").click()
    expect(page.locator("#rows tr")).to_have_count(50)
    expect(page.get_by_role("link", name="Older")).to_have_count(0)
    page.get_by_role("link", name="Newer").click()
    expect(page.locator("#rows tr").first).to_contain_text("number 149")


def test_a_wrong_filter_is_told_beside_the_form(dashboard: Running, open_page: Open) -> None:
    page = open_page(f"{dashboard.url}/logs?since=soon")
    expect(page.get_by_role("alert").filter(has_text="since")).to_contain_text("an age as 15m")
    expect(page.locator("#f-since")).to_have_value("soon")
    picture(page, "logs-failed")
    assert all("422" in trouble for trouble in open_page.troubles)
    open_page.troubles.clear()


def test_it_works_without_scripts(dashboard: Running, run: str, open_page: Open) -> None:
    page = open_page(f"{dashboard.url}/logs", scripts=False)
    page.locator("#f-text").fill("answer")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#rows tr")).to_have_count(2)


@pytest.mark.parametrize(("scheme", "phone"), [("light", True), ("dark", False), ("dark", True)])
@pytest.mark.parametrize(
    "path", ["/logs", "/logs/summary", "/logs/errors", "/logs/runs/roadmap-42"]
)
def test_nothing_is_wider_than_the_screen(
    dashboard: Running, run: str, open_page: Open, path: str, scheme: str, phone: bool
) -> None:
    page = open_page(f"{dashboard.url}{path}", scheme=scheme, phone=phone)
    expect(page.locator("#main")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    name = path.strip("/").replace("/", "-")
    picture(page, f"{name}-{scheme}{'-phone' if phone else ''}")


_TABLES_FIT = """[...document.querySelectorAll(".table-wrap")]
    .every(table => table.scrollWidth <= table.clientWidth + 1)"""


def test_whatever_is_logged_fits_and_hides_nothing(
    dashboard: Running, database: Database, open_page: Open
) -> None:
    word = "unbroken-" * 27
    put(
        database,
        [
            made("m" * 16_000, "error", run_id="odd", category=word, agent=word,
                 step=f"{word[:100]}/b{word[:100]}", concept_id=word, task_id=word,
                 details={"deep": {"a": ["b" * 9_000]}}),
            made("\x1b[31mred \u202eexe.txt", "warning", run_id="odd", category="\u202egpj"),
            made("first line\n  second line", run_id="odd", after=1),
            made("生成了学习路线图的第一章" * 60, run_id="odd", category="写作", agent="مرحبا"),
        ],
    )  # fmt: skip
    for phone in (False, True):
        page = open_page(f"{dashboard.url}/logs?run=odd", phone=phone)
        expect(page.locator("#rows tr")).to_have_count(4)
        expect(page.locator("#rows")).to_contain_text(r"\x1b[31mred \u202eexe.txt")
        record = page.locator("#rows a.plain", has_text="mmm").get_attribute("href")
        picture(page, f"logs-odd{'-phone' if phone else ''}")
        assert record is not None
        for path in ("/logs?run=odd", record, "/logs/runs/odd", "/logs/summary?run=odd"):
            page.goto(f"{dashboard.url}{path}")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
            assert page.evaluate("document.documentElement.scrollHeight < 6000"), path
            assert page.evaluate(_TABLES_FIT), path
    page = open_page(f"{dashboard.url}/logs?run=odd&text=second")
    page.locator("#rows a.plain").click()
    expect(page.locator("pre.block").first).to_have_text("first line\n  second line")
