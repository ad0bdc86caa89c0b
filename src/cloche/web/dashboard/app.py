"""The dashboard on :8001: what runs now, and what is wrong with it.

Starlette alone: FastAPI would add a fifth of a second to the start of a server without
request bodies to validate (docs/decisions/0005-web-frameworks.md).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from types import MappingProxyType

import orjson
from anyio.to_thread import run_sync
from celery import Celery
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from cloche.cluster import Cluster
from cloche.database import Database
from cloche.errors import ClocheError
from cloche.health.runner import Ask
from cloche.history.live import LiveTasks
from cloche.logs.read.reader import LogReader
from cloche.metrics import Metrics
from cloche.records import TaskRun
from cloche.settings import Settings
from cloche.web import live as sse
from cloche.web.auth import Security, check_exposure
from cloche.web.dashboard.overview import Overview
from cloche.web.dashboard.runs import find_run, silent_backend
from cloche.web.forms import login_routes
from cloche.web.live import SharedByKey
from cloche.web.logs.api import PATHS, LogsApi
from cloche.web.logs.live import LogStreams
from cloche.web.logs.page import LogsPage
from cloche.web.openapi import dashboard_document
from cloche.web.pages import page, render, static_files
from cloche.web.probes import Probes
from cloche.web.problems import ProblemPages, not_found, on_error, on_http_error, problem

_MAX_TASKS = 1000


def create_dashboard(
    app: Celery, settings: Settings, checks: Mapping[str, Ask] = MappingProxyType({})
) -> Starlette:
    """The dashboard of ``app``. ``.state.close()`` ends its event streams at once.

    ``checks`` are health checks beyond what any process needs. Raises SettingsError when
    others could reach it without a token.
    """
    check_exposure(settings.dashboard, "dashboard")
    cluster = Cluster(app, settings, checks=checks)
    live = LiveTasks(app, on_event=lambda event, task: metrics.event(event, task))
    metrics = Metrics(cluster.snapshot, live.gaps)
    board = Dashboard(app, settings, cluster, live, metrics)
    database = Database(settings)
    reader = LogReader(database)
    streams = LogStreams(reader)

    def close() -> None:
        board.close()
        streams.close()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        cluster.start()
        live.start()
        yield
        # Both only read: nothing is lost when their threads end with the process.
        live.stop(deadline=0.2)
        cluster.stop(deadline=0.2)
        database.close()

    made = Starlette(
        routes=[
            *Probes(cluster.health).routes(),
            *login_routes(settings.dashboard, "dashboard"),
            *board.routes(),
            *LogsPage(reader, streams).routes(),
            *LogsApi(reader, streams).routes(),
            Route("/api/openapi.json", _openapi),
            Mount("/static", static_files()),
        ],
        middleware=[
            Middleware(ProblemPages),
            Middleware(Security, settings=settings.dashboard, purpose="dashboard"),
        ],
        exception_handlers={ClocheError: on_error, HTTPException: on_http_error},
        lifespan=lifespan,
    )
    made.state.close = close
    return made


class Dashboard:
    """Pages of the dashboard and their JSON twins."""

    def __init__(
        self, app: Celery, settings: Settings, cluster: Cluster, live: LiveTasks, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._cluster = cluster
        self._live = live
        self._find = partial(find_run, app, live)
        self._overview = Overview(cluster, live, settings)
        self._runs: SharedByKey[TaskRun | None] = SharedByKey(
            lambda task_id: self._find(str(task_id)), lambda _: 0.5
        )

    def routes(self) -> list[Route]:
        """All routes of the dashboard."""
        return [
            Route("/", self.show),
            Route("/live", self.stream),
            Route("/tasks/{id}", self.show_task),
            Route("/tasks/{id}/live", self.stream_task),
            Route("/metrics", self.metrics),
            Route("/api/snapshot", self.snapshot),
            Route("/api/tasks", self.tasks),
            Route("/api/tasks/{id}", self.task),
        ]

    def close(self) -> None:
        """End every stream at once."""
        self._overview.close()
        self._runs.close()

    async def show(self, request: Request) -> Response:
        service = self._settings.service
        host = request.url.hostname or "localhost"
        return page(
            "dashboard/page.html",
            fragments=await run_sync(self._overview.fragments),
            service_port=service.port if service.enabled else None,
            service_url=str(request.url.replace(hostname=host, port=service.port, path="/")),
        )

    async def stream(self, _request: Request) -> Response:
        """The overview's fragments as they change."""
        return sse.stream(self._overview.stream())

    async def show_task(self, request: Request) -> Response:
        """All that is known of one task."""
        task_id = request.path_params["id"]
        try:
            run = await run_sync(self._find, task_id)
        except Exception as error:  # noqa: BLE001 (any result backend, any error)
            return silent_backend(error)
        if run is None:
            return page("dashboard/missing.html", status=404, id=task_id)
        return page("dashboard/task.html", run=run)

    async def stream_task(self, request: Request) -> Response:
        """That task's fragment as it changes."""
        return sse.stream(self._task_events(request.path_params["id"]))

    async def snapshot(self, _request: Request) -> Response:
        """Health, workers, queues and gaps now."""
        snapshot = self._cluster.snapshot()
        return _json({"ok": snapshot.ok, "snapshot": snapshot, "events": self._live.gaps()})

    async def metrics(self, _request: Request) -> Response:
        return Response(
            await run_sync(self._metrics.text),
            headers={"content-type": CONTENT_TYPE_LATEST, "cache-control": "no-store"},
        )

    async def tasks(self, request: Request) -> Response:
        """Recent tasks, newest first: ``?limit=50&state=FAILURE``."""
        limit = request.query_params.get("limit", "50")
        if not re.fullmatch("[0-9]{1,9}", limit) or not 1 <= int(limit) <= _MAX_TASKS:
            why = f"It must be a number from 1 to {_MAX_TASKS}."
            return problem(422, "limit is wrong", why=why)
        runs = self._live.recent(int(limit), state=request.query_params.get("state"))
        return _json({"tasks": runs, "gaps": self._live.gaps()})

    async def task(self, request: Request) -> Response:
        """All that is known of one task, as JSON."""
        task_id = request.path_params["id"]
        try:
            run = await run_sync(self._find, task_id)
        except Exception as error:  # noqa: BLE001 (any result backend, any error)
            return silent_backend(error)
        return not_found(f"trace of task {task_id!r}") if run is None else _json(run)

    async def _task_events(self, task_id: str) -> AsyncIterator[str]:
        async with aclosing(self._runs.watch(task_id)) as looks:
            async for run in looks:
                if run is None:
                    yield sse.KEEP_ALIVE
                else:
                    yield sse.event("task", render("dashboard/run.html", run=run))


async def _openapi(_request: Request) -> Response:
    """What this API takes and gives."""
    return _json(
        dashboard_document(
            (f"/api/logs{path}", name, getattr(LogsApi, name).__doc__ or "") for path, name in PATHS
        )
    )


def _json(value: object) -> Response:
    return Response(
        orjson.dumps(value),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )
