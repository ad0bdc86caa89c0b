"""Which processes ``cloche up`` runs, what each needs, and when each is ready."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

from celery import Celery

from cloche.backoff import Backoff
from cloche.launch.workers import Declared, declared, node_of
from cloche.process.spec import ProcessSpec
from cloche.settings import Settings
from cloche.settings.model import WebSettings

#: Seconds a web server may take to stop before it is killed.
WEB_GRACE = 10.0
#: Seconds beat may take to write its schedule.
BEAT_GRACE = 10.0

RESTART = Backoff(first=0.5, factor=2, limit=30, jitter=0.2)


@dataclass(frozen=True, slots=True)
class Plan:
    """The declared workers, and how each process of the stack is run.

    ``environ`` is added to each child's environment. ``own_broker`` is the embedded one, if
    this launcher runs it: all others need it. ``extra`` are further processes, as they are.
    """

    app: Celery
    settings: Settings
    environ: Mapping[str, str]
    workers: Mapping[str, Declared]
    own_broker: ProcessSpec | None = None
    extra: tuple[ProcessSpec, ...] = ()

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """Every process, the broker first."""
        return (
            *((self.own_broker,) if self.own_broker else ()),
            *(spec for one in self.workers.values() for spec in self.processes(one)),
            *self.others(),
            *self.extra,
        )

    @property
    def pages(self) -> dict[str, str]:
        """Where a person finds the web pages: name -> URL."""
        return {name: page_url(web) for name, web in self.webs().items()}

    def webs(self) -> dict[str, WebSettings]:
        """The web servers that are enabled."""
        both: dict[str, WebSettings] = {
            "service": self.settings.service,
            "dashboard": self.settings.dashboard,
        }
        return {name: web for name, web in both.items() if web.enabled}

    def processes(self, one: Declared) -> Iterator[ProcessSpec]:
        """The processes of a declared worker."""
        return (self.worker(one, label) for label in one.labels())

    def worker(self, one: Declared, label: str) -> ProcessSpec:
        """One process of a worker."""
        stop = self.settings.stop
        return ProcessSpec(
            name=label,
            group=one.name,
            command=_cloche("worker", "--name", label, *one.arguments, "--supervised"),
            env=self.environ,
            needs=self._needs,
            notify=True,
            ready=WorkerReady(self.app, node_of(label)),
            ready_timeout=60,
            stop_signals=(
                (signal.SIGTERM, stop.soft),
                (signal.SIGQUIT, stop.grace - stop.soft),
            ),
            restart=RESTART,
        )

    def others(self) -> Iterator[ProcessSpec]:
        if self.settings.beat.enabled:
            yield _beat(self.environ, self._needs)
        for name, web in self.webs().items():
            yield _web(name, web, self.environ, self._needs)

    @property
    def _needs(self) -> tuple[str, ...]:
        return (self.own_broker.name,) if self.own_broker else ()


def plan(
    app: Celery,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    own_broker: ProcessSpec | None = None,
) -> Plan:
    """Everything that is declared for ``app``."""
    return Plan(app, settings, environ, declared(app, settings), own_broker)


def page_url(web: WebSettings) -> str:
    """Where a browser on this machine finds a page."""
    everywhere = web.host in ("0.0.0.0", "::", "")  # noqa: S104 (compared, not bound)
    host = "localhost" if everywhere or web.host in ("127.0.0.1", "::1") else web.host
    return f"http://{host}:{web.port}"


def _cloche(*arguments: str) -> tuple[str, ...]:
    # -P: as with `celery`, no module of the project comes before Python's own.
    return (sys.executable, "-P", "-m", "cloche", *arguments)


def _beat(environ: Mapping[str, str], needs: tuple[str, ...]) -> ProcessSpec:
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
        # The standard library's client: httpx2 would cost every start 0.15 s.
        host = "127.0.0.1" if self.web.host in ("0.0.0.0", "") else self.web.host  # noqa: S104
        connection = HTTPConnection(host, self.web.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
