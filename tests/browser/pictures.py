"""Screenshots for people to look at, when the variable SCREENSHOTS names a directory."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Page


def picture(page: Page, name: str) -> None:
    """Keep what the page looks like now."""
    place = os.environ.get("SCREENSHOTS")
    if place:
        page.screenshot(path=Path(place) / f"{name}.png", full_page=True)
