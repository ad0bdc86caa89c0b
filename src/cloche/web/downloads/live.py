"""Downloads as they change: one stream of queries per thing watched, however many watch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import aclosing
from functools import lru_cache

import orjson

from cloche.tasks.download import Download, Downloads
from cloche.web import live as sse
from cloche.web.downloads.schema import view
from cloche.web.live import Shared, SharedByKey
from cloche.web.pages import render

#: Downloads on the page.
SHOWN = 30
#: Seconds between looks while something moves, and while nothing does.
_BUSY, _IDLE = 0.25, 1.0


class DownloadStreams:
    """Event streams for the API (one download) and the page (the newest ones)."""

    def __init__(self, desk: Downloads) -> None:
        self._desk = desk
        self._one: SharedByKey[tuple[Download | None]] = SharedByKey(self._get, lambda _: _BUSY)
        self._newest: Shared[tuple[Download, ...]] = Shared(self._list, _pause)

    def close(self) -> None:
        """End every stream at once."""
        self._one.close()
        self._newest.close()

    async def of(self, id: str) -> AsyncIterator[str]:
        """``progress`` events until the last one, named by the final state."""
        number = 0
        async with aclosing(self._one.watch(id)) as looks:
            async for look in looks:
                if look is None:
                    yield sse.KEEP_ALIVE
                    continue
                (download,) = look
                if download is None:
                    return  # removed
                number += 1
                over = not download.state.active
                name = str(download.state) if over else "progress"
                body = orjson.dumps(view(download).model_dump(mode="json")).decode()
                yield sse.event(name, body, id=str(number))
                if over:
                    return

    async def page(self) -> AsyncIterator[str]:
        """Fragments of the page: the list when its members change, else what changed."""
        sent: dict[str, Download] | None = None
        async with aclosing(self._newest.watch()) as looks:
            async for downloads in looks:
                if downloads is None:
                    yield sse.KEEP_ALIVE
                    continue
                for name, fragment in changes(sent, downloads):
                    yield sse.event(name, fragment)
                sent = {download.id: download for download in downloads}

    def _get(self, id: Hashable) -> tuple[Download | None]:
        """In a tuple, to tell a download that was removed from a look without news."""
        return (self._desk.get(str(id)),)

    def _list(self) -> tuple[Download, ...]:
        return tuple(self._desk.list(limit=SHOWN))


def _pause(downloads: tuple[Download, ...]) -> float:
    return _BUSY if any(download.state.active for download in downloads) else _IDLE


def changes(
    sent: dict[str, Download] | None, downloads: tuple[Download, ...]
) -> list[tuple[str, str]]:
    """(event, fragment) that bring a page from ``sent`` to ``downloads``.

    A card is replaced only when its state changes: replacing a button four times a second
    would swallow the click on it.
    """
    if sent is None or list(sent) != [download.id for download in downloads]:
        return [("list", list_fragment(downloads))]
    fragments = []
    for download in downloads:
        before = sent[download.id]
        if (before.state, before.filename) != (download.state, download.filename):
            fragments.append((f"d-{download.id}", _card(download)))
        elif before != download:
            fragments.append((f"p-{download.id}", _progress(download)))
    return fragments


@lru_cache(maxsize=64)
def list_fragment(downloads: tuple[Download, ...]) -> str:
    return render("service/list.html", downloads=downloads)


def answer_fragment(downloads: tuple[Download, ...]) -> str:
    """The whole list after something was done, and an order to clear the last complaint."""
    return render("service/answer.html", downloads=downloads)


@lru_cache(maxsize=256)
def _card(download: Download) -> str:
    return render("service/download.html", download=download)


@lru_cache(maxsize=256)
def _progress(download: Download) -> str:
    return render("service/progress.html", download=download)
