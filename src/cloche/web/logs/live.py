"""Execution logs as they arrive: one stream of queries per filter, however many watch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import cast
from uuid import UUID

from anyio.to_thread import run_sync

from cloche.logs.read.document import dumped
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.logs.read.tail import MAX_RECORDS, UNDER_WAY, News, RecordTail, look
from cloche.logs.record import LogRecord
from cloche.web import live as sse
from cloche.web.live import SharedByKey
from cloche.web.pages import adding, render

#: Seconds between looks.
PAUSE = 0.5
#: How much further the shared look goes back: viewers take it up a moment later.
_MARGIN = timedelta(seconds=5)


class LogStreams:
    """Event streams for the API (records as JSON) and the page (rows of its table)."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._newest: SharedByKey[tuple[LogRecord, ...]] = SharedByKey(self._read, lambda _: PAUSE)

    def close(self) -> None:
        """End every stream at once."""
        self._newest.close()

    async def records(self, wanted: LogFilter, after: UUID | None) -> AsyncIterator[str]:
        """``record`` for each new record, ``skipped`` where some were left out."""
        async for news in self._news(wanted, after):
            if news is None:
                yield sse.KEEP_ALIVE
                continue
            if news.skipped:
                yield sse.event("skipped", "")
            for record in news.records:
                yield sse.event("record", dumped(record).decode(), id=str(record.id))

    async def rows(self, wanted: LogFilter, after: UUID | None) -> AsyncIterator[str]:
        """``rows`` with what is new as rows of the page's table, the newest first."""
        async for news in self._news(wanted, after):
            if news is None:
                yield sse.KEEP_ALIVE
                continue
            newest = news.records[-1].id
            rows = render(
                "logs/rows.html",
                records=news.records[::-1],
                skipped=news.skipped,
                fresh=True,
                having=adding("/logs", wanted.params()),
            )
            yield sse.event("rows", rows, id=str(newest))

    async def _news(self, wanted: LogFilter, after: UUID | None) -> AsyncIterator[News | None]:
        """What is new, never empty; None for "nothing new, still here"."""
        tail = RecordTail(after)
        if after is not None:
            news = await run_sync(partial(look, self._reader, wanted, tail))
            if news.records:
                yield news
        async with aclosing(self._newest.watch(wanted)) as looks:
            async for found in looks:
                if found is None:
                    yield None
                    continue
                news = tail.news(found, datetime.now(UTC) - _MARGIN, full=len(found) == MAX_RECORDS)
                if news.records:
                    yield news

    def _read(self, wanted: Hashable) -> tuple[LogRecord, ...]:
        since = datetime.now(UTC) - UNDER_WAY - 2 * _MARGIN
        return self._reader.newest(cast(LogFilter, wanted), since, MAX_RECORDS)
