"""What an operator sees on the dashboard."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.pictures import picture
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running

pytestmark = pytest.mark.browser


def test_worker_queue_and_task_appear_while_one_looks(
    dashboard: Running, stack: Stack, open_page: Open
) -> None:
    page = open_page(dashboard.url)
    expect(page.locator("#workers")).to_contain_text("first@test")
    expect(page.locator("#queues")).to_contain_text("download_queue")
    climb = stack.app.tasks["tests.integration.web.sample.climb"].delay(8, 0.5)
    row = page.locator("#tasks tr", has_text=climb.id[:8])
    expect(row).to_contain_text("Running")
    expect(page.locator("#workers")).to_contain_text("1 of 4")
    stack.app.tasks["tests.integration.web.sample.fail"].delay("no more ink")
    picture(page, "dashboard-busy")
    expect(row).to_contain_text("Succeeded")
    expect(row.locator("time")).to_contain_text("ago")
    picture(page, "dashboard-light")


def test_a_task_page_shows_the_traceback_and_follows_the_task(
    dashboard: Running, stack: Stack, open_page: Open
) -> None:
    sent = stack.app.tasks["tests.integration.web.sample.fail"].delay("no more ink")
    page = open_page(dashboard.url)
    page.locator("#tasks tr", has_text=sent.id[:8]).locator("a").click()
    expect(page.locator(".error-text")).to_contain_text("no more ink")
    expect(page.locator("pre.block")).to_contain_text("Traceback")
    picture(page, "task-failed")
    climb = stack.app.tasks["tests.integration.web.sample.climb"].delay(6, 0.5)
    page.goto(f"{dashboard.url}/")
    page.locator("#tasks tr", has_text=climb.id[:8]).locator("a").click()
    expect(page.get_by_role("status")).to_have_text("Running")
    expect(page.get_by_role("status")).to_have_text("Succeeded")
    expect(page.locator(".facts")).to_contain_text("arrived")


def test_a_backlog_without_consumer_is_said_first(
    dashboard: Running, stack: Stack, open_page: Open
) -> None:
    stack.app.amqp.queues.add("reports")
    try:
        for _ in range(3):
            stack.app.tasks["tests.integration.web.sample.add"].apply_async((1, 1), queue="reports")
        page = open_page(dashboard.url)
        expect(page.locator(".verdict")).to_contain_text(
            "queue reports: 3 waiting and nobody consumes it"
        )
        expect(page.locator("#queues")).to_contain_text("Backlog, no consumer")
        picture(page, "dashboard-trouble")
    finally:
        with stack.app.connection_for_write() as connection:
            connection.default_channel.queue_purge("reports")
        stack.app.amqp.queues.pop("reports")


@pytest.mark.parametrize(("scheme", "phone"), [("light", True), ("dark", False), ("dark", True)])
def test_nothing_is_wider_than_the_screen(
    dashboard: Running, open_page: Open, scheme: str, phone: bool
) -> None:
    page = open_page(dashboard.url, scheme=scheme, phone=phone)
    expect(page.locator("#workers")).to_contain_text("first@test")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(page, f"dashboard-{scheme}{'-phone' if phone else ''}")
