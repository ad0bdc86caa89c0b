"""Fixtures shared with the browser tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery
from celery.apps.worker import Worker  # noqa: F401 (imported before threads start)

from cloche.settings import Settings, load
from cloche.testing import free_port
from cloche.web.dashboard.app import create_dashboard
from cloche.web.downloads.app import create_service
from tests.integration.web.stack import Running, Source, serving, source, working


@dataclass
class Stack:
    """What every test may use: the settings of all processes, the application, the worker."""

    settings: Settings
    app: Celery
    environ: dict[str, str]
    directory: Path
    broker_url: str


@pytest.fixture(scope="package")
def stack(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Broker and one worker that takes downloads and the default queue."""
    directory = tmp_path_factory.mktemp("web")
    environ = {
        "CLOCHE_BROKER__URL": broker_url,
        "CLOCHE_RUN_DIR": str(directory),
        "CLOCHE_DOWNLOAD__ALLOW_NETWORKS": "127.0.0.0/8",
        "CLOCHE_DOWNLOAD__PER_HOST": "8",
        "CLOCHE_SERVICE__PORT": str(free_port()),
        "CLOCHE_DASHBOARD__PORT": str(free_port()),
    }
    # The module is imported once, this fixture made once per package of tests.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        from tests.integration.web import sample
    settings = load(environ=environ, directory=directory).settings
    # One process writes the schema before others look for it.
    with working(
        environ,
        directory / "worker.log",
        "-n",
        "first@test",
        "-c",
        "4",
        "-P",
        "threads",
        "-Q",
        "celery,download_queue",
        "-E",
    ):
        yield Stack(settings, sample.app, environ, directory, broker_url)


@pytest.fixture(scope="package")
def files() -> Iterator[Source]:
    """The source of downloads."""
    with source() as served:
        yield served


@pytest.fixture(scope="package")
def service(stack: Stack) -> Iterator[Running]:
    """The service, listening."""
    with serving(create_service(stack.app, stack.settings), stack.settings.service) as running:
        yield running


@pytest.fixture(scope="package")
def dashboard(stack: Stack) -> Iterator[Running]:
    """The dashboard, listening."""
    board = create_dashboard(stack.app, stack.settings)
    with serving(board, stack.settings.dashboard) as running:
        yield running
