"""The service on :8000: downloads for people (a page) and programs (an API)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from anyio.to_thread import run_sync
from celery import Celery, states
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cloche.cluster import Cluster, read_run
from cloche.database import Database
from cloche.database.failures import shown_url
from cloche.errors import ClocheError
from cloche.records import Health
from cloche.settings import Settings
from cloche.tasks.download import Downloads
from cloche.web.auth import Security, check_exposure
from cloche.web.dashboard.runs import silent_backend
from cloche.web.downloads.api import downloads_router
from cloche.web.downloads.live import DownloadStreams
from cloche.web.downloads.page import DownloadsPage
from cloche.web.downloads.schema import TaskView
from cloche.web.forms import login_routes
from cloche.web.openapi import any_problem
from cloche.web.pages import static_files
from cloche.web.probes import Probes
from cloche.web.problems import (
    PROBLEM_TYPE,
    Problem,
    ProblemPages,
    on_error,
    on_http_error,
    problem,
)

_log = logging.getLogger(__name__)
#: Seconds between two looks for unfinished files.
_SWEEP_EVERY = 3600.0


def create_service(app: Celery, settings: Settings) -> FastAPI:
    """The service for ``app``. ``.state.close()`` ends its event streams at once.

    Raises SettingsError when others could reach it without a token, DatabaseError when
    the database cannot be used.
    """
    check_exposure(settings.service, "service")
    database = Database(settings)
    desk = Downloads(app, settings, database)
    streams = DownloadStreams(desk)
    cluster = Cluster(
        app, settings, checks={"database": lambda: check_database(desk, database)}, every=5.0
    )
    queue = settings.families["download"].queue or app.conf.task_default_queue
    probes = Probes(cluster.health, lambda: (_consumed(cluster, queue),))

    api = FastAPI(
        title="Cloche",
        version="1",
        summary="Ask for files, watch them arrive, fetch them.",
        lifespan=_lifespan(cluster, desk, database),
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    api.state.close = streams.close
    _describe(api)
    api.include_router(downloads_router(desk, streams))
    _add_tasks(api, app)
    page = DownloadsPage(desk, streams, settings)
    api.router.routes += [
        *probes.routes(),
        *login_routes(settings.service, "service"),
        *page.routes(),
    ]
    api.mount("/static", static_files())
    api.add_exception_handler(ClocheError, on_error)
    api.add_exception_handler(HTTPException, on_http_error)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_middleware(Security, settings=settings.service, purpose="service")
    api.add_middleware(ProblemPages)  # the last one added is asked first
    return api


def _describe(api: FastAPI) -> None:
    """Have ``api`` tell its errors as what they are: FastAPI calls all of them JSON."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _corrected(
                get_openapi(
                    title=api.title, version=api.version, summary=api.summary, routes=api.routes
                )
            )
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            said: dict[str, Any] = operation["responses"]
            for status, response in said.items():
                kinds = response.get("content", {})
                if status >= "400" and "application/json" in kinds:
                    kinds[PROBLEM_TYPE] = kinds.pop("application/json")
            said.setdefault("default", any_problem("Anything else that is refused"))
    return document


def check_database(desk: Downloads, database: Database) -> str:
    """One query; says where the database is."""
    desk.list(limit=1)
    return shown_url(database.url)


def _consumed(cluster: Cluster, queue: str) -> Health:
    """Whether a worker would take a download up. Not needed to be ready: without one,
    requests still queue and cached files are still served."""
    snapshot = cluster.snapshot()
    takers = [worker.name for worker in snapshot.workers if queue in worker.queues]
    detail = ", ".join(takers) or f"no worker seen yet that consumes {queue}"
    return Health("workers", bool(takers), detail)


def _lifespan(
    cluster: Cluster, desk: Downloads, database: Database
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        cluster.start()
        sweeping = asyncio.create_task(_sweep_now_and_then(desk))
        yield
        sweeping.cancel()
        cluster.stop(deadline=0.2)  # it only reads: nothing is lost
        database.close()

    return lifespan


async def _sweep_now_and_then(desk: Downloads) -> None:
    """Remove what nobody has waited for since a day."""
    while True:
        try:
            await run_sync(desk.sweep, abandon_on_cancel=True)
        except (ClocheError, OSError) as error:
            _log.warning("unfinished downloads are not swept: %s", error)
        await asyncio.sleep(_SWEEP_EVERY)


def _add_tasks(api: FastAPI, app: Celery) -> None:
    @api.get(
        "/api/tasks/{task_id}",
        tags=["tasks"],
        summary="State of any task",
        response_model=TaskView,
        responses={503: {"model": Problem, "description": "The result backend is silent"}},
    )
    def show_task(task_id: str) -> TaskView | Response:
        """State, result and progress from the result backend; only JSON is ever decoded."""
        try:
            found = read_run(app, task_id)
        except Exception as error:  # noqa: BLE001 (any result backend, any error)
            return silent_backend(error)
        if found is None:
            return TaskView(id=task_id, known=False, state=states.PENDING)
        run, value = found
        over = run.state in states.READY_STATES
        return TaskView(
            id=run.id,
            known=True,
            state=run.state,
            name=run.name,
            result=value if over and run.exception is None else None,
            progress=None if over else value,
            exception=run.exception,
            traceback=run.traceback,
            worker=run.worker,
            queue=run.queue,
            retries=run.retries,
            finished=run.finished,
        )


async def _on_invalid(_request: Request, error: Exception) -> Response:
    """FastAPI's validation errors as problem details."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for this type)
    wrong = [
        {
            "field": ".".join(str(part) for part in item["loc"][1:]),
            "message": str(item["msg"]).removeprefix("Value error, "),
        }
        for item in error.errors()
    ]
    why = "; ".join(f"{item['field'] or 'body'}: {item['message']}" for item in wrong)
    return problem(422, "The request is not understood", why=why, errors=wrong)
