"""The JSON API of execution logs: endpoints that any Starlette or FastAPI application can route."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from datetime import UTC, datetime
from functools import wraps
from typing import TypeAlias

from anyio import CancelScope
from anyio.to_thread import run_sync
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cloche.errors import ClocheError
from cloche.logs.read.document import CONTENT_TYPES, dumped, exported
from cloche.logs.read.reader import LogReader
from cloche.web import live as sse
from cloche.web.logs.live import LogStreams
from cloche.web.logs.query import LogsQuery, uuid_of
from cloche.web.pages import link
from cloche.web.problems import not_found, problem, status_of

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
#: Paths below the API's own and the methods of `LogsApi` that answer there; the first match.
PATHS = (
    ("", "page"),
    ("/summary", "summary"),
    ("/errors", "errors"),
    ("/export", "export"),
    ("/live", "live"),
    ("/runs/{run:path}/trace", "trace"),
    ("/runs/{run:path}/summary", "summary"),
    ("/runs/{run:path}/errors", "errors"),
    ("/{id}", "show"),
)


class LogsApi:
    """Records, traces, figures, errors, files and streams, as JSON."""

    def __init__(self, reader: LogReader, streams: LogStreams) -> None:
        self._reader = reader
        self._streams = streams

    def routes(self, prefix: str = "/api/logs") -> list[Route]:
        """Its paths as routes of Starlette."""
        return [Route(prefix + path, self.endpoint(name)) for path, name in PATHS]

    def endpoint(self, name: str) -> Endpoint:
        """One of those that `PATHS` names."""
        endpoint: Endpoint = getattr(self, name)
        return explained(endpoint)

    async def page(self, request: Request) -> Response:
        """Records, newest first. Follow ``older`` and ``newer``."""
        asked = LogsQuery.asked(request)
        page = await run_sync(
            lambda: self._reader.page(
                asked.filter, limit=asked.limit, before=asked.before, after=asked.after
            )
        )
        here = {**asked.filter.params(), "limit": str(asked.limit)}
        address = str(request.url.path)
        return _json(
            {
                "records": page.records,
                "older": link(address, here, before=page.older) if page.older else None,
                "newer": link(address, here, after=page.newer) if page.newer else None,
            }
        )

    async def show(self, request: Request) -> Response:
        text = request.path_params["id"]
        id = uuid_of(text)
        record = None if id is None else await run_sync(self._reader.get, id)
        return not_found(f"log record {text!r}") if record is None else _json(record)

    async def trace(self, request: Request) -> Response:
        """A run: its steps, what took how long, where nothing was heard, its first records."""
        run = request.path_params["run"]
        trace = await run_sync(self._reader.trace, run)
        return not_found(f"run {run!r} in the log") if trace is None else _json(trace)

    async def summary(self, request: Request) -> Response:
        """Counts, and durations by step. Without run, task or since: of the last 24 hours."""
        asked = LogsQuery.asked(request, **_run_of(request))
        return _json(await run_sync(self._reader.summary, asked.filter))

    async def errors(self, request: Request) -> Response:
        """Errors that are alike, grouped. Without run, task or since: of the last 24 hours."""
        asked = LogsQuery.asked(request, **_run_of(request))
        return _json(await run_sync(self._reader.errors, asked.filter))

    async def export(self, request: Request) -> Response:
        """All records of the filter, oldest first, as a file: JSON lines or CSV."""
        asked = LogsQuery.asked(request)
        pieces = exported(self._reader.stream(asked.filter), asked.format)
        # The first piece decides whether it is an answer at all: a database that is not there
        # is told as what it is, not as half a file.
        first = await run_sync(lambda: next(pieces, b""))
        name = f"logs-{datetime.now(UTC):%Y%m%d-%H%M%S}.{asked.format}"
        return StreamingResponse(
            _whole(first, pieces),
            media_type=CONTENT_TYPES[asked.format],
            headers={
                "cache-control": "no-store",
                "content-disposition": f'attachment; filename="{name}"',
            },
        )

    async def live(self, request: Request) -> Response:
        """Server-sent events: ``record`` as records arrive, ``skipped`` when there were too
        many to send. ``Last-Event-ID`` goes on from there."""
        asked = LogsQuery.asked(request)
        after = uuid_of(request.headers.get("last-event-id", "")) or asked.after
        return sse.stream(self._streams.records(asked.filter, after))


def explained(endpoint: Endpoint) -> Endpoint:
    """Errors of ours as problem details, in applications that know nothing of them."""

    @wraps(endpoint)
    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClocheError as error:
            return problem(status_of(error), error.what, why=error.why, fix=error.fix)

    return answering


async def _whole(first: bytes, rest: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
    """All pieces; the query behind them ends with it, also when the reader has gone away."""
    try:
        yield first
        async for piece in iterate_in_threadpool(rest):
            yield piece
    finally:
        with CancelScope(shield=True):
            await run_sync(rest.close)


def _run_of(request: Request) -> dict[str, str]:
    run = request.path_params.get("run")
    return {} if run is None else {"run": run}


def _json(value: object) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(dumped(value), media_type="application/json", headers=headers)
