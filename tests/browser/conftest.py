"""A real Chromium. Any word in its console about the content security policy, any script
error and any request to another host fails the test that caused it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Protocol, cast
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    Playwright,
    Request,
    sync_playwright,
)

from tests.integration.web.fixtures import dashboard, files, service, stack

__all__ = ["dashboard", "files", "service", "stack"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="package")
def chromium() -> str:
    """Where Chromium is; without one the tests are skipped, loudly."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NO CHROMIUM: the browser tests did not run (apt-get install chromium)")
    return found


@pytest.fixture(scope="package")
def playwright_driver() -> Iterator[Playwright]:
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="package")
def browser(playwright_driver: Playwright, chromium: str) -> Iterator[Browser]:
    launched = playwright_driver.chromium.launch(executable_path=chromium, args=list(_ARGUMENTS))
    yield launched
    launched.close()


class Open(Protocol):
    """Opens pages; ``troubles`` are what they complained of so far."""

    troubles: list[str]

    def __call__(
        self, url: str, *, scheme: str = "light", phone: bool = False, scripts: bool = True
    ) -> Page: ...


#: What a page shows when something was escaped twice or not filled in.
_MARKUP = re.compile(r"</?[a-z]+[^>]*>|&[a-z]+;|\{\{")


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a page in a context of its own; ``scheme`` light or dark, ``phone`` narrow."""
    contexts = []
    troubles: list[str] = []

    def start(
        url: str, *, scheme: str = "light", phone: bool = False, scripts: bool = True
    ) -> Page:
        context = browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": 390, "height": 844} if phone else {"width": 1280, "height": 900},
            device_scale_factor=2 if phone else 1,
            accept_downloads=True,
            java_script_enabled=scripts,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        _watch(page, urlsplit(url).hostname, troubles)
        page.goto(url)
        return page

    opener = cast(Open, start)
    opener.troubles = troubles
    yield opener
    for context in contexts:
        for page in context.pages:
            shown = page.locator("body").inner_text()
            troubles += [f"markup shown as text: {m}" for m in _MARKUP.findall(shown)]
        context.close()
    assert not troubles, "\n".join(troubles)


def _watch(page: Page, here: str | None, troubles: list[str]) -> None:
    def on_error(error: Error) -> None:
        troubles.append(f"script error: {error}")

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            troubles.append(f"console: {message.text}")

    def on_request(request: Request) -> None:
        if urlsplit(request.url).hostname not in (here, None):
            troubles.append(f"request to {request.url}")

    page.on("pageerror", on_error)
    page.on("console", on_console)
    page.on("request", on_request)
