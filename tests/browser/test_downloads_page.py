"""What a person does on the downloads page."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.pictures import picture
from tests.integration.web.stack import Running, Source

pytestmark = pytest.mark.browser

_MIB = 1024 * 1024


def test_paste_watch_save_and_the_second_time_it_is_there(
    service: Running, files: Source, open_page: Open, tmp_path: Path
) -> None:
    files.rate = 2 * _MIB
    url = files.add("harvest-2026.zip", 6 * _MIB)
    page = open_page(service.url)
    picture(page, "service-empty")
    page.keyboard.press("/")
    page.locator("#url").fill(url)
    page.keyboard.press("Enter")
    card = page.locator(".download", has_text="harvest-2026.zip")
    bar = card.locator("progress")
    expect(bar).to_have_attribute("max", str(6 * _MIB))
    seen = {int(bar.get_attribute("value") or 0)}
    expect(card).to_contain_text("left")
    picture(page, "service-busy")
    page.wait_for_function(
        "before => Number(document.querySelector('.download progress').value) > before",
        arg=max(seen),
    )
    expect(page.locator("#url")).to_have_value("")
    expect(card.get_by_role("status")).to_have_text("Done")
    with page.expect_download() as coming:
        card.get_by_role("link", name="Save file").click()
    saved = tmp_path / coming.value.suggested_filename
    coming.value.save_as(saved)
    assert saved.name == "harvest-2026.zip"
    assert hashlib.sha256(saved.read_bytes()).hexdigest() == files.sha256("harvest-2026.zip")

    page.locator("#url").fill(url)
    page.get_by_role("button", name="Download").click()
    expect(page.locator(".download").first.get_by_role("status")).to_have_text("Cached")
    assert files.requests.count("GET harvest-2026.zip") == 1
    picture(page, "service-light")


def test_cancel_and_try_again(service: Running, files: Source, open_page: Open) -> None:
    files.rate = _MIB
    url = files.add("long-journey.iso", 30 * _MIB)
    page = open_page(service.url)
    page.locator("#url").fill(url)
    page.get_by_role("button", name="Download").click()
    card = page.locator(".download", has_text="long-journey.iso")
    expect(card.get_by_role("status")).to_have_text("Downloading")
    expect(card).to_contain_text("B/s")
    card.get_by_role("button", name="Cancel").click()
    expect(card.get_by_role("status")).to_have_text("Cancelled")
    picture(page, "service-cancelled")
    files.rate = 0
    card.get_by_role("button", name="Try again").click()
    expect(card.get_by_role("status")).to_have_text("Done")
    picture(page, "service-done")
    card.get_by_role("button", name="Remove").click()
    expect(card).to_have_count(0)


def test_what_cannot_be_fetched_says_why(service: Running, files: Source, open_page: Open) -> None:
    page = open_page(service.url)
    page.locator("#url").fill(f"{files.url}/not-there.pdf")
    page.get_by_role("button", name="Download").click()
    card = page.locator(".download", has_text="not-there.pdf")
    expect(card.get_by_role("status")).to_have_text("Failed")
    expect(card.locator(".error-text")).to_contain_text("404")
    page.locator("#url").fill("http://10.1.2.3/inner.txt")
    open_page.troubles.clear()
    page.get_by_role("button", name="Download").click()
    expect(page.locator("#notice")).to_contain_text("10.1.2.3")
    picture(page, "service-failed")
    # Chromium logs every answer of 4xx as an error: this one is meant.
    assert all("422" in trouble for trouble in open_page.troubles)
    open_page.troubles.clear()


def test_it_works_without_scripts(service: Running, files: Source, open_page: Open) -> None:
    files.rate = 0
    url = files.add("plain.txt", 2000, "text/plain")
    page = open_page(service.url, scripts=False)
    page.locator("#url").fill(url)
    page.get_by_role("button", name="Download").click()
    expect(page.locator(".download", has_text="plain.txt")).to_be_visible()
    for _ in range(50):
        if page.locator(".download", has_text="plain.txt").locator(".badge.good").count():
            break
        page.wait_for_timeout(100)
        page.reload()
    expect(page.locator(".download", has_text="plain.txt")).to_contain_text("Done")


@pytest.mark.parametrize(("scheme", "phone"), [("light", True), ("dark", False), ("dark", True)])
def test_nothing_is_wider_than_the_screen(
    service: Running, open_page: Open, scheme: str, phone: bool
) -> None:
    page = open_page(service.url, scheme=scheme, phone=phone)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(page, f"service-{scheme}{'-phone' if phone else ''}")


_WEIGHTS = """() => {
    const parts = [...performance.getEntriesByType("navigation"),
                   ...performance.getEntriesByType("resource")]
        .filter(p => !p.name.includes("/live"));
    return parts.filter(p => p.encodedBodySize > 0).length >= 5
        ? parts.map(p => p.encodedBodySize) : null;
}"""


def test_the_whole_page_weighs_little(service: Running, open_page: Open) -> None:
    page = open_page(service.url)
    weights: list[int] = page.wait_for_function(_WEIGHTS).json_value()
    assert 10 * 1024 < sum(weights) <= 150 * 1024
