"""Ways to get a file: plain HTTP, and yt-dlp for media pages."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cloche.settings.model import DownloadSettings
from cloche.tasks.download.cache import Cache, Space
from cloche.tasks.download.fetcher import Fetcher
from cloche.tasks.download.part import Checksum, Part
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Order, Stored
from cloche.tasks.download.ytdlp import YtDlp, knows
from cloche.tasks.egress import EgressGuard


class Backend(Protocol):
    """Gets one file; made for one run of the task."""

    async def fetch(
        self, order: Order, partial: Path, progress: Progress, known: Stored | None
    ) -> Stored | None:
        """Get the file, at or below ``partial``; None: the ``known`` one is still right."""

    def keep(self, stored: Stored, cache: Cache) -> None:
        """Move what was fetched into the cache."""


class Http:
    """Plain files over HTTP."""

    def __init__(self, settings: DownloadSettings, guard: EgressGuard, space: Space) -> None:
        self._fetcher = Fetcher(settings, guard, space=space)
        self._part: Part | None = None

    async def fetch(
        self, order: Order, partial: Path, progress: Progress, known: Stored | None
    ) -> Stored | None:
        """See `Fetcher.fetch`."""
        checksum = Checksum.parse(order.checksum) if order.checksum else None
        self._part = Part(partial, checksum)
        return await self._fetcher.fetch(order, self._part, progress, known)

    def keep(self, stored: Stored, cache: Cache) -> None:
        """Move the part into the cache."""
        if self._part is not None:
            cache.put(self._part.path, stored.sha256)
            self._part.forget()


def choose_backend(
    order: Order, settings: DownloadSettings, guard: EgressGuard, space: Space
) -> Backend:
    """The backend an order names; for ``auto`` yt-dlp where it has an extractor of its own.

    Raises `ExtraMissingError` when yt-dlp is asked for and not installed.
    """
    if order.backend == "yt-dlp" or (order.backend == "auto" and knows(order.url)):
        return YtDlp(settings, guard, space)
    return Http(settings, guard, space)
