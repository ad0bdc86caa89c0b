"""A live worker of the probe application."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from cloche.app import create_app
from cloche.settings import load
from tests.acceptance.stack import clean_environ, wait_for


class LiveWorker:
    """``cloche worker`` (or ``celery worker``) on the probe application."""

    def __init__(
        self, directory: Path, number: int, command: list[str], environ: dict[str, str]
    ) -> None:
        self.log = directory / f"worker-{number}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, words: str) -> bool:
        return words in self.output

    def wait_ready(self) -> None:
        wait_for("the worker to be ready", lambda: " ready." in self.output or self.ended, 30)
        assert not self.ended, self.output

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        if not self.ended:
            self.process.kill()
        self.process.wait(10)


StartWorker = Callable[..., LiveWorker]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers: ``start(broker_url, "-c", "1", app=…, stock=…, **environ)``."""
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
        worker = LiveWorker(tmp_path, len(started), [*base, *arguments], variables)
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
