"""Execution logs in a FastAPI application.

::

    api = FastAPI(lifespan=lifespan(celery_app))
    api.include_router(logs_router(dependencies=[Depends(only_for_operators)]))

    @api.post("/orders")
    async def order(log: Logger) -> dict[str, str]:
        log.info("shop", "order", "received")
        ...
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from anyio.to_thread import run_sync
from celery import Celery
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.params import Depends as Dependency

from cloche.database import Database
from cloche.errors import ClocheError
from cloche.logs.context import settle, within
from cloche.logs.read.reader import LogReader
from cloche.logs.write.logger import ExecutionLogger
from cloche.settings import Settings
from cloche.settings.of_app import settings_of
from cloche.web.logs.api import PATHS, LogsApi
from cloche.web.logs.live import LogStreams
from cloche.web.openapi import log_operation

#: A lifespan of somebody else, with or without state, and ours, which always has some.
Other: TypeAlias = (
    Callable[[FastAPI], AbstractAsyncContextManager[None]]
    | Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]
)
Ours: TypeAlias = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]
#: A run id from outside is written to the log as it is: a plain word, not too long.
_RUN_ID = re.compile(r"[\w.:@/+-]{1,200}")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one application shares among its requests."""

    logger: ExecutionLogger
    reader: LogReader
    api: LogsApi


def lifespan(
    celery: Celery, settings: Settings | None = None, *, also: Other | None = None
) -> Ours:
    """Opens the execution log of ``celery`` with the application; flushes and closes it, and the
    connections of ``celery``, at its end.

    ``also`` is the application's own lifespan: it begins after and ends before this one. Raises
    SettingsError at the start when the settings are wrong.
    """

    @asynccontextmanager
    async def opened(api: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        found = settings or settings_of(celery)
        database = Database(found)
        reader = LogReader(database)
        streams = LogStreams(reader)
        logger = ExecutionLogger(celery, found)
        async with AsyncExitStack() as stack:
            for close in (database.close, celery.close, logger.close):  # the last one first
                stack.push_async_callback(_in_thread, close)
            stack.callback(streams.close)
            state: Mapping[str, Any] | None = None
            if also is not None:
                state = await stack.enter_async_context(also(api))
            parts = _Parts(logger, reader, LogsApi(reader, streams))
            yield {**(state or {}), "cloche": parts}

    return opened


async def run_id_of(
    response: Response,
    x_run_id: Annotated[str | None, Header(description="The workflow run; made if missing")] = None,
) -> str:
    """The run id of a request: its ``X-Run-ID``, else a new one; told in the answer's header.

    What is logged until the end of the request belongs to that run.
    """
    given = x_run_id or ""
    run_id = given if _RUN_ID.fullmatch(given) else uuid.uuid4().hex
    response.headers["x-run-id"] = run_id
    settle(within(run_id=run_id))
    return run_id


async def logger_of(request: Request, _run: Annotated[str, Depends(run_id_of)]) -> ExecutionLogger:
    """The execution log of the application, within the run of the request."""
    return _parts(request).logger


async def reader_of(request: Request) -> LogReader:
    """The read side; its methods wait for the database: call them in plain ``def`` endpoints."""
    return _parts(request).reader


#: The run id of the request, the logger and the reader, as parameters of an endpoint.
RunId = Annotated[str, Depends(run_id_of)]
Logger = Annotated[ExecutionLogger, Depends(logger_of)]
Reader = Annotated[LogReader, Depends(reader_of)]


def logs_router(
    prefix: str = "/api/logs", *, dependencies: Sequence[Dependency] = (), **options: Any
) -> APIRouter:
    """The read API: records, traces, figures, errors, export, live stream.

    It shows whatever was logged to whoever may call it: ``dependencies`` should say who. Further
    ``options`` go to APIRouter.
    """
    options = {"tags": ["execution logs"], **options}
    router = APIRouter(prefix=prefix, dependencies=list(dependencies), **options)
    for path, name in PATHS:
        router.add_api_route(
            path,
            _endpoint(name),
            methods=["GET"],
            name=f"logs-{name}",
            response_class=Response,
            summary=f"Logs: {path.replace(':path', '') or 'records'}",
            description=getattr(LogsApi, name).__doc__,
            openapi_extra=log_operation(path, name),
        )
    return router


def _endpoint(name: str) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await _parts(request).api.endpoint(name)(request)

    return endpoint


async def _in_thread(close: Callable[[], None]) -> None:
    await run_sync(close)


def _parts(request: Request) -> _Parts:
    found = getattr(request.state, "cloche", None)
    if not isinstance(found, _Parts):
        raise ClocheError(
            "The execution log of this application is not open.",
            why="Its lifespan is not the one of cloche.contrib.fastapi.",
            fix="FastAPI(lifespan=lifespan(celery_app)), with your own as also=…",
        )
    return found
