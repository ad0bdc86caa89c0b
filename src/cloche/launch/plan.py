"""Which processes ``cloche up`` runs, what each needs, and when each is ready."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

from celery import Celery

from cloche.backoff import Backoff
from cloche.launch.pools import foreseen
from cloche.launch.workers import declared_workers
from cloche.process.spec import ProcessSpec
from cloche.settings import Settings
from cloche.settings.model import WebSettings, WorkerSettings

#: Seconds a web server may take to stop before it is killed.
WEB_GRACE = 10.0
#: Seconds beat may take to write its schedule.
BEAT_GRACE = 10.0

RESTART = Backoff(first=0.5, factor=2, limit=30, jitter=0.2)


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes, where a person finds the web pages (name -> URL), and the workers."""

    specs: tuple[ProcessSpec, ...]
    pages: Mapping[str, str]
    workers: Mapping[str, WorkerSettings]


def plan(app: Celery, settings: Settings, environ: Mapping[str, str], *, broker: bool) -> Plan:
    """Everything but the broker. ``environ`` is added to each child's environment.

    ``broker`` says that a process named "broker" of this launcher must be ready first.
    """
    needs = ("broker",) if broker else ()
    webs: dict[str, WebSettings] = {"service": settings.service, "dashboard": settings.dashboard}
    workers = {name: foreseen(app, one) for name, one in declared_workers(settings).items()}
    specs = [*_workers(app, settings, workers, environ, needs)]
    if settings.beat.enabled:
        specs.append(_beat(settings, environ, needs))
    specs += [_web(name, web, environ, needs) for name, web in webs.items() if web.enabled]
    pages = {name: page_url(web) for name, web in webs.items() if web.enabled}
    return Plan(tuple(specs), pages, workers)


def page_url(web: WebSettings) -> str:
    """Where a browser on this machine finds a page."""
    everywhere = web.host in ("0.0.0.0", "::", "")  # noqa: S104 (compared, not bound)
    host = "localhost" if everywhere or web.host in ("127.0.0.1", "::1") else web.host
    return f"http://{host}:{web.port}"


def _cloche(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "cloche", *arguments)


def _workers(
    app: Celery,
    settings: Settings,
    workers: Mapping[str, WorkerSettings],
    environ: Mapping[str, str],
    needs: tuple[str, ...],
) -> Iterator[ProcessSpec]:
    for name, worker in workers.items():
        for number in range(1, (worker.processes or 1) + 1):
            label = name if worker.processes == 1 else f"{name}-{number}"
            yield ProcessSpec(
                name=label,
                command=_cloche("worker", "--name", label, "--like", name, "--supervised"),
                env=environ,
                needs=needs,
                notify=True,
                ready=WorkerReady(app, f"{label}@{socket.gethostname()}"),
                ready_timeout=60,
                stop_signals=(
                    (signal.SIGTERM, settings.stop.soft),
                    (signal.SIGQUIT, settings.stop.grace - settings.stop.soft),
                ),
                restart=RESTART,
            )


def _beat(settings: Settings, environ: Mapping[str, str], needs: tuple[str, ...]) -> ProcessSpec:
    return ProcessSpec(
        name="beat",
        command=_cloche("beat"),
        env=environ,
        needs=needs,
        notify=True,
        stop_signals=((signal.SIGTERM, BEAT_GRACE),),
        restart=RESTART,
    )


def _web(
    name: str, web: WebSettings, environ: Mapping[str, str], needs: tuple[str, ...]
) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=_cloche(name),
        env=environ,
        needs=needs,
        notify=True,
        ready=PageReady(web),
        stop_signals=((signal.SIGTERM, WEB_GRACE),),
        restart=RESTART,
    )


class WorkerReady:
    """A worker is ready when it answers ``inspect active_queues`` with at least one queue.

    On Redis it subscribes to questions only after it said that it is ready (kombu does so in
    the first turn of the event loop). One asked before is never heard, so the first answers
    are waited for briefly.
    """

    def __init__(self, app: Celery, node: str) -> None:
        self._app = app
        self._node = node
        self._patience = Backoff(first=0.1, factor=1.7, limit=2)
        self._asked = 0

    async def __call__(self) -> bool:
        self._asked += 1
        return await asyncio.to_thread(self._answers, self._patience.delay(self._asked))

    def _answers(self, timeout: float) -> bool:
        inspect = self._app.control.inspect(destination=[self._node], timeout=timeout)
        answer = inspect.active_queues() or {}
        return bool(answer.get(self._node))


@dataclass(frozen=True)
class PageReady:
    """A web server is ready when its ``/healthz`` answers 200."""

    web: WebSettings

    async def __call__(self) -> bool:
        return await asyncio.to_thread(self._answers)

    def _answers(self) -> bool:
        # The standard library's client: httpx would cost every start 0.15 s.
        host = "127.0.0.1" if self.web.host in ("0.0.0.0", "") else self.web.host  # noqa: S104
        connection = HTTPConnection(host, self.web.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
