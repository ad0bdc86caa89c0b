"""Workers of the project, one per pool, and the servers it uses."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from cloche.testing import PostgresProcess, clean_environ, wait_until

ROOT = Path(__file__).parents[3]

#: How each pool is asked for, how many processes it runs its tasks in, and the transport and
#: result backend it is tried with.
POOLS = {
    "prefork": (["-P", "prefork", "-c", "2"], 2, "redis"),
    "threads": (["-P", "threads", "-c", "10"], 1, "cloche+redis"),
    "solo": (["-P", "solo"], 1, "redis"),
}
if importlib.util.find_spec("cloche.aio.pool") is not None:
    POOLS["asyncio"] = (["-P", "custom", "-c", "100"], 1, "cloche+redis")


class Echo(BaseHTTPRequestHandler):
    """Answers with the last part of the path."""

    protocol_version = "HTTP/1.1"
    # The answer is two small writes: without this each waits for a delayed acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = self.path.rpartition("/")[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """A web site."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def database(postgres: PostgresProcess) -> Iterator[str]:
    """A database with the project's table."""
    with postgres.database() as url:
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE seen (number int, task text)"))
        engine.dispose()
        yield url


class Project:
    """The project, its worker on one pool, and an application to send tasks with."""

    def __init__(
        self, pool: str, directory: Path, *, broker: str, database: str, site: str
    ) -> None:
        self.pool = pool
        self.name = f"{pool}-{secrets.token_hex(4)}"
        self.ledger = directory / "ledger"
        self.ledger.touch()
        self.environ = clean_environ(
            PYTHONPATH=str(ROOT),
            PROJECT_BROKER=broker,
            PROJECT_DATABASE=database.replace("postgresql:", "postgresql+asyncpg:", 1),
            PROJECT_SITE=site,
            PROJECT_NAME=self.name,
            PROJECT_LEDGER=str(self.ledger),
            CELERY_CUSTOM_WORKER_POOL="cloche.aio.pool:TaskPool",
        )
        self.app = Celery(f"client-{pool}", broker=broker, backend=broker, set_as_current=False)
        self.app.conf.task_default_queue = self.name
        self.directory = directory
        self.processes = 1
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options, self.processes, _ = POOLS[self.pool]
        words = ["-m", "celery", "-A", "tests.integration.aio_task.project", "worker"]
        self._starts += 1
        current = self.directory / f"log-{self._starts}"
        with current.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words, *options, "-l", "INFO", "-n", f"{self.name}@%h"],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: " ready." in current.read_text(), "the worker to be ready", 60)

    @property
    def output(self) -> str:
        """What all its workers have logged."""
        return "".join(log.read_text() for log in sorted(self.directory.glob("log-*")))

    @property
    def lines(self) -> list[str]:
        return self.ledger.read_text().split("\n")[:-1]

    def send(self, name: str, *args: object, **options: object) -> Any:
        return self.app.send_task(f"project.{name}", args, **options)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """A warm stop; the exit code."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait_end()

    def wait_end(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module", params=list(POOLS))
def project(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    broker_url: str,
    database: str,
    site: str,
) -> Iterator[Project]:
    """A running worker of the project on each pool."""
    directory = tmp_path_factory.mktemp(request.param)
    broker = broker_url.replace("redis", POOLS[request.param][2], 1)
    own = Project(request.param, directory, broker=broker, database=database, site=site)
    own.start()
    yield own
    own.stop()
    own.app.close()
    assert not [line for line in own.output.splitlines() if "different loop" in line]


@pytest.fixture
def eager(tmp_path: Path, broker_url: str, database: str, site: str) -> Iterator[Project]:
    """The project without a worker."""
    own = Project("eager", tmp_path, broker=broker_url, database=database, site=site)
    yield own
    own.app.close()
