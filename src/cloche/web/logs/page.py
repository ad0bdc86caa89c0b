"""The pages of execution logs: what is asked stands in the address, so it can be sent to others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import TypeAlias

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cloche.errors import ClocheError
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.web import live as sse
from cloche.web.logs.live import LogStreams
from cloche.web.logs.query import LogsQuery, uuid_of
from cloche.web.logs.timeline import timeline_of
from cloche.web.pages import adding, link, page
from cloche.web.problems import status_of

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
#: Groups of errors and steps a page shows.
_ROWS = 200
TABS = (("Records", "/logs"), ("Summary", "/logs/summary"), ("Errors", "/logs/errors"))


class LogsPage:
    """``/logs`` and what belongs to it."""

    def __init__(self, reader: LogReader, streams: LogStreams) -> None:
        self._reader = reader
        self._streams = streams

    def routes(self) -> list[Route]:
        """All routes of these pages."""
        return [
            Route("/logs", explained(self.records)),
            Route("/logs/live", explained(self.live)),
            Route("/logs/summary", explained(self.summary)),
            Route("/logs/errors", explained(self.errors)),
            Route("/logs/runs/{run:path}", explained(self.trace)),
            Route("/logs/records/{id}", explained(self.record)),
        ]

    async def records(self, request: Request) -> Response:
        """Records, newest first, by the page or as they arrive."""
        asked = LogsQuery.asked(request)
        read = partial(
            self._reader.page, asked.filter, limit=asked.limit, before=asked.before,
            after=asked.after,
        )  # fmt: skip
        found = await run_sync(read)
        here = partial(link, "/logs", asked.filter.params())
        newest = found.records[0].id if found.records else None
        return _page(
            "logs/records.html",
            asked,
            "/logs",
            found=found,
            older=here(before=found.older) if found.older else None,
            newer=here(after=found.newer) if found.newer else None,
            live=bool(asked.live),
            switch=here(live=None if asked.live else 1),
            stream=link("/logs/live", asked.filter.params(), after=newest),
        )

    async def live(self, request: Request) -> Response:
        """New rows of that table."""
        asked = LogsQuery.asked(request)
        after = uuid_of(request.headers.get("last-event-id", "")) or asked.after
        return sse.stream(self._streams.rows(asked.filter, after))

    async def summary(self, request: Request) -> Response:
        """Counts, and durations by step."""
        asked = LogsQuery.asked(request)
        found = await run_sync(self._reader.summary, asked.filter)
        return _page("logs/summary.html", asked, "/logs/summary", found=found, rows=_ROWS)

    async def errors(self, request: Request) -> Response:
        """Errors that are alike, grouped."""
        asked = LogsQuery.asked(request)
        found = await run_sync(self._reader.errors, asked.filter)
        return _page("logs/errors.html", asked, "/logs/errors", found=found, rows=_ROWS)

    async def trace(self, request: Request) -> Response:
        """A run as a timeline of its steps, and its records in order."""
        run = request.path_params["run"]
        trace = await run_sync(self._reader.trace, run)
        if trace is None:
            return page("logs/missing.html", status=404, what="this run", id=run)
        return page("logs/trace.html", trace=trace, timeline=timeline_of(trace))

    async def record(self, request: Request) -> Response:
        """One record with all its details."""
        text = request.path_params["id"]
        id = uuid_of(text)
        record = None if id is None else await run_sync(self._reader.get, id)
        if record is None:
            return page("logs/missing.html", status=404, what="this record", id=text)
        return page("logs/record.html", record=record)


def explained(endpoint: Endpoint) -> Endpoint:
    """What cannot be asked or read is told on the page, the form as it was filled in."""

    @wraps(endpoint)
    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClocheError as error:
            return _page(
                "logs/failed.html",
                dict(request.query_params),
                request.url.path,
                status=status_of(error),
                problem=error,
            )

    return answering


def _page(
    template: str,
    asked: LogsQuery | dict[str, str],
    here: str,
    *,
    status: int = 200,
    **values: object,
) -> HTMLResponse:
    params = asked.filter.params() if isinstance(asked, LogsQuery) else asked
    answer = page(
        template,
        status=status,
        here=here,
        given={**dict.fromkeys(LogFilter.model_fields, ""), **params},
        filtered=bool(params),
        fields=LogFilter.model_fields,
        tabs=[(name, path, link(path, params)) for name, path in TABS],
        without=lambda name: link(here, {k: v for k, v in params.items() if k != name}),
        having=adding("/logs", params),
        export=link("/api/logs/export", params),
        api=link("/api" + here, params),
        **values,
    )
    # The form sends empty fields too; the address keeps those that say something.
    live = "1" if values.get("live") else None
    answer.headers["hx-push-url"] = link(here, params, live=live)
    return answer
