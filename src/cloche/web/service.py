"""The service on :8000: downloads for people (a page) and programs (an API)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from celery import Celery, states
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cloche.cluster import Cluster, read_run
from cloche.database import Database
from cloche.errors import ClocheError
from cloche.records import Health
from cloche.settings import Settings
from cloche.tasks.download import Downloads
from cloche.web.downloads_api import downloads_router
from cloche.web.downloads_live import DownloadStreams
from cloche.web.downloads_page import DownloadsPage
from cloche.web.forms import login_routes
from cloche.web.pages import static_files
from cloche.web.probes import Probes
from cloche.web.problems import on_error, on_http_error, problem
from cloche.web.runs import silent_backend
from cloche.web.schema import Problem, TaskView
from cloche.web.security import Security, check_exposure


def create_service(app: Celery, settings: Settings) -> FastAPI:
    """The service for ``app``. ``.state.close()`` ends its event streams at once.

    Raises SettingsError when others could reach it without a token, DatabaseError when
    the database cannot be used.
    """
    check_exposure(settings.service, "service")
    database = Database(settings)
    desk = Downloads(app, settings, database)
    streams = DownloadStreams(desk)
    cluster = Cluster(app, {"database": lambda: check_database(desk, database)}, every=5.0)
    queue = settings.families["download"].queue or app.conf.task_default_queue
    probes = Probes(cluster.health, lambda: (_consumed(cluster, queue),))

    api = FastAPI(
        title="Cloche",
        version="1",
        summary="Ask for files, watch them arrive, fetch them.",
        lifespan=_lifespan(cluster),
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    api.state.close = streams.close
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
    return api


def check_database(desk: Downloads, database: Database) -> str:
    """One query; says where the database is."""
    desk.list(limit=1)
    return database.url.render_as_string(hide_password=True)


def _consumed(cluster: Cluster, queue: str) -> Health:
    """Whether a worker would take a download up. Not needed to be ready: without one,
    requests still queue and cached files are still served."""
    snapshot = cluster.snapshot()
    takers = [worker.name for worker in snapshot.workers if queue in worker.queues]
    detail = ", ".join(takers) or f"no worker seen yet that consumes {queue}"
    return Health("workers", bool(takers), detail)


def _lifespan(cluster: Cluster) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        cluster.start()
        yield
        cluster.stop(deadline=0.2)  # it only reads: nothing is lost

    return lifespan


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
