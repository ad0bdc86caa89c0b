"""A live worker of the probe application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from cloche.app import create_app
from cloche.settings import load
from cloche.testing import clean_environ
from tests.commands import Forked


class LiveWorker(Forked):
    """``cloche worker`` (or ``celery worker``) on the probe application."""

    ready = " ready."


StartWorker = Callable[..., LiveWorker]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers: ``start(broker_url, "-c", "1", app=…, stock=…, **environ)``."""
    yield from _starter(tmp_path)


@pytest.fixture(scope="module")
def start_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """The same for a module's tests together."""
    yield from _starter(tmp_path_factory.mktemp("workers"))


def _starter(tmp_path: Path) -> Iterator[StartWorker]:
    started: list[LiveWorker] = []

    def start(
        broker_url: str,
        *arguments: str,
        app: str = "tests.integration.app.probe",
        stock: bool = False,
        command: str = "worker",
        ready: bool = True,
        **environ: str,
    ) -> LiveWorker:
        root = str(Path(__file__).parents[3])
        base = ["celery", "-A", app, "worker", "-l", "INFO"] if stock else ["cloche", command]
        if not stock:
            base += ["-A", app]
        variables = clean_environ(CLOCHE_BROKER__URL=broker_url, PYTHONPATH=root, **environ)
        log = tmp_path / f"worker-{len(started)}.log"
        worker = LiveWorker(["-m", *base, *arguments], log, environ=variables).start()
        started.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def client_app() -> Callable[..., Celery]:
    """A hardened application of the test's own process."""

    def make(broker_url: str, **values: Any) -> Celery:
        cli = {"broker.url": broker_url, **{k.replace("__", "."): v for k, v in values.items()}}
        return create_app("client", load(cli, environ={}).settings)

    return make
