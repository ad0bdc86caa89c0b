"""Servers of the projects: one of each kind for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche.errors import NotReadyError
from cloche.testing import BrokerProcess, RabbitProcess
from tests.projects.harness import Project

OpenProject = Callable[..., Project]


@pytest.fixture
def server() -> Iterator[BrokerProcess]:
    """The projects' Redis, empty: their queues have Celery's names."""
    with BrokerProcess() as broker:
        yield broker


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitProcess]:
    try:
        started = RabbitProcess()
    except NotReadyError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(f"NOT TESTED ON RABBITMQ: {error}")
    with started:
        yield started


@pytest.fixture
def open_project(tmp_path: Path, server: BrokerProcess) -> Iterator[OpenProject]:
    """``open_project(name, app, **environ)``; everything it started is gone afterwards."""
    opened: list[Project] = []

    def open_(name: str, app: str, **environ: str) -> Project:
        directory = tmp_path / name
        project = Project(name, app, directory, {"PROJECT_BROKER": server.url, **environ})
        opened.append(project)
        return project

    yield open_
    for project in opened:
        project.close()
