"""Downloads under ``cloche worker``, with the production defaults and nothing but variables."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from celery import Celery
from celery.result import AsyncResult

from cloche.app import create_app
from cloche.database import Database
from cloche.settings import load
from cloche.tasks.download import Download, Downloads, DownloadState
from cloche.testing import PostgresProcess, clean_environ, wait_until
from tests.integration.download.conftest import kill_group
from tests.integration.download.server import File, FileServer


class Production:
    """A directory where ``cloche worker`` runs, and who asks for downloads there."""

    def __init__(self, directory: Path, broker: str, **environ: str) -> None:
        self.environ = {
            "CLOCHE_BROKER__URL": broker,
            "CLOCHE_RUN_DIR": str(directory / "run"),
            "CLOCHE_DOWNLOAD__ALLOW_NETWORKS": "127.0.0.0/8",
            "CLOCHE_FAMILIES__DOWNLOAD__RETRY_DELAY": "0",
            **environ,
        }
        self.directory = directory
        self.settings = load(environ=self.environ, directory=directory).settings
        self.app: Celery = create_app("client", self.settings)
        self.app.loader.import_default_modules()
        self.database = Database(self.settings)
        self.downloads = Downloads(self.app, self.settings, self.database)
        self.log = directory / "worker.log"

    @contextmanager
    def worker(self, *arguments: str) -> Iterator[psutil.Process]:
        """A worker of one process that is ready; its whole process group is gone afterwards."""
        command = [sys.executable, "-m", "cloche", "worker", "-Q", "download_queue", "-c", "1"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=self.directory,
                env=clean_environ(**self.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(lambda: " ready." in self.log.read_text(), f"the worker ({self.log})")
            yield psutil.Process(process.pid)
        finally:
            kill_group(process.pid)
            process.wait()
            print(self.log.read_text())

    def close(self) -> None:
        self.app.close()
        self.database.close()

    def now(self, id: str) -> Download:
        found = self.downloads.get(id)
        assert found is not None
        return found

    def until(self, id: str, condition: Callable[[Download], bool], what: str) -> Download:
        wait_until(lambda: condition(self.now(id)), what)
        return self.now(id)

    def until_received(self, id: str, size: int) -> None:
        self.until(id, lambda row: row.received >= size, f"{size} bytes")

    def over(self, id: str) -> Download:
        return self.until(id, lambda row: not row.state.active, "the end of the download")

    def task_state(self, row: Download) -> str:
        return str(AsyncResult(row.task_id, app=self.app).state)


Produce = Callable[..., Production]


@pytest.fixture
def production(download_broker: str, tmp_path: Path) -> Iterator[Produce]:
    with ExitStack() as cleanup:

        def make(**environ: str) -> Production:
            made = Production(tmp_path, download_broker, **environ)
            cleanup.callback(made.close)
            return made

        yield make


def slow(body: bytes) -> File:
    """A file that comes at about 2 MB per second, until it is released."""
    return File(body, piece=65536, pause=65536 / 2e6)


def test_a_download_runs_on_postgresql(
    production: Produce, postgres: PostgresProcess, server: FileServer, noise: bytes
) -> None:
    with postgres.database() as url:
        stack, file = production(DATABASE_URL=url), File(noise, drops=[1_000_000])
        with stack.worker():
            assert "  queues  download_queue\n" in stack.log.read_text()
            done = stack.over(stack.downloads.request(server.add("/x", file)).id)
        assert (done.state, done.sha256, done.restarts) == (DownloadState.DONE, file.sha256, 1)
        assert stack.downloads.path(done).read_bytes() == noise
        assert not (stack.settings.run_dir / "cloche.db").exists()


def test_a_download_survives_a_restart_of_postgresql(
    production: Produce, postgres: PostgresProcess, server: FileServer, noise: bytes
) -> None:
    """Killed under a running download and back a moment later: only progress was not written."""
    with PostgresProcess() as own:
        stack, file = production(DATABASE_URL=own.url), slow(noise)
        with stack.worker():
            id = stack.downloads.request(server.add("/x", file)).id
            stack.until_received(id, 1_000_000)
            own.kill()
            wait_until(lambda: "not written" in stack.log.read_text(), "the worker to notice")
            own.start()
            file.released.set()
            done = stack.over(id)
        assert (done.state, done.sha256) == (DownloadState.DONE, file.sha256)
        assert len(file.requests) == 1


def test_a_killed_pool_process_is_shown_and_its_download_resumed(
    production: Produce, server: FileServer, noise: bytes
) -> None:
    stack, file = production(CLOCHE_FAMILIES__DOWNLOAD__RETRY_DELAY="2"), slow(noise)
    with stack.worker() as worker:
        id = stack.downloads.request(server.add("/x", file)).id
        stack.until_received(id, 2_000_000)
        [child] = worker.children()
        child.send_signal(signal.SIGKILL)
        waiting = stack.until(id, lambda row: row.state is DownloadState.RETRYING, "RETRYING")
        assert "process was killed" in (waiting.error or "")
        file.released.set()
        done = stack.over(id)
    assert (done.state, done.sha256, done.error) == (DownloadState.DONE, file.sha256, None)
    assert done.attempts == 2
    assert _resumed_at(file) > 1_000_000


def test_a_killed_pool_process_without_a_delay_is_resumed_at_once(
    production: Produce, server: FileServer, noise: bytes
) -> None:
    """The new message may run before the worker has finished with the old one."""
    stack, file = production(), slow(noise)
    with stack.worker("-c", "2") as worker:
        id = stack.downloads.request(server.add("/x", file)).id
        stack.until_received(id, 2_000_000)
        busy = [child for child in worker.children() if child.net_connections("inet")]
        [child] = [child for child in busy if _talks_to(child, server.port)]
        file.released.set()
        child.send_signal(signal.SIGKILL)
        done = stack.over(id)
    assert (done.state, done.sha256, done.error) == (DownloadState.DONE, file.sha256, None)
    assert done.attempts == 2
    assert _resumed_at(file) > 1_000_000


def test_a_download_that_kills_every_process_fails_in_the_end(
    production: Produce, server: FileServer, noise: bytes
) -> None:
    stack, file = production(CLOCHE_FAMILIES__DOWNLOAD__MAX_RETRIES="1"), slow(noise)
    with stack.worker() as worker:
        id = stack.downloads.request(server.add("/x", file)).id
        for attempt in (1, 2):
            stack.until(
                id,
                lambda row, attempt=attempt: row.attempts == attempt and row.rate > 0,  # type: ignore[misc]
                "the attempt",
            )
            [child] = [child for child in worker.children() if _talks_to(child, server.port)]
            child.send_signal(signal.SIGKILL)
        failed = stack.over(id)
        wait_until(lambda: stack.task_state(failed) == "FAILURE", "FAILURE")
        assert failed.state is DownloadState.FAILED
        assert "process was killed" in (failed.error or "")
        file.released.set()
        stack.downloads.retry(id)
        assert stack.over(id).sha256 == file.sha256


def test_the_familys_soft_limit_ends_a_download_and_keeps_what_came(
    production: Produce, server: FileServer, noise: bytes
) -> None:
    stack = production(CLOCHE_FAMILIES__DOWNLOAD__SOFT_TIME_LIMIT="2")
    file = slow(noise)
    url = server.add("/x", file)
    with stack.worker():
        failed = stack.over(stack.downloads.request(url).id)
        assert failed.state is DownloadState.FAILED
        assert "time limit was reached after 2 s" in (failed.error or "")
        assert failed.received > 1_000_000
        wait_until(lambda: stack.task_state(failed) == "FAILURE", "FAILURE")
        file.released.set()
        assert stack.over(stack.downloads.request(url).id).sha256 == file.sha256
    assert _resumed_at(file) > 1_000_000


def test_the_familys_hard_limit_ends_a_download_that_no_longer_reacts(
    production: Produce, server: FileServer, noise: bytes
) -> None:
    """A stopped process sees no soft limit; the hard one kills it and its row says so."""
    stack = production(
        CLOCHE_FAMILIES__DOWNLOAD__SOFT_TIME_LIMIT="3", CLOCHE_FAMILIES__DOWNLOAD__TIME_LIMIT="5"
    )
    file = slow(noise)
    url = server.add("/x", file)
    with stack.worker() as worker:
        id = stack.downloads.request(url).id
        stack.until_received(id, 1_500_000)
        [child] = worker.children()
        child.suspend()
        failed = stack.over(id)
        assert failed.state is DownloadState.FAILED
        assert "hard time limit" in (failed.error or "")
        wait_until(lambda: stack.task_state(failed) == "FAILURE", "FAILURE")
        wait_until(lambda: not child.is_running(), "the process to be killed")
        file.released.set()
        assert stack.over(stack.downloads.request(url).id).sha256 == file.sha256
    assert _resumed_at(file) > 1_000_000


def _talks_to(process: psutil.Process, port: int) -> bool:
    links = process.net_connections("inet")
    return any(link.raddr and link.raddr.port == port for link in links)


def _resumed_at(file: File) -> int:
    return int(file.requests[-1]["range"].removeprefix("bytes=").removesuffix("-"))
