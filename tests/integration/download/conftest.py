"""What the download tests share."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from cloche.settings import Settings
from cloche.settings.of_app import settings_of
from cloche.tasks.download import Download, Downloads, DownloadState
from cloche.testing import BrokerProcess, wait_until
from tests.commands import Forked
from tests.integration.download.app import make
from tests.integration.download.server import FileServer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture(scope="session")
def noise() -> bytes:
    """Bytes that differ at every offset, so that a wrongly joined file cannot pass."""
    return random.Random(7).randbytes(8 * 1024**2)


@pytest.fixture(scope="session")
def download_broker() -> Iterator[str]:
    """The URL of a broker of our own, emptied before each test."""
    with BrokerProcess() as own:
        yield own.url


class Stack:
    """A facade and workers on one broker and one run directory."""

    def __init__(self, broker: str, directory: Path, setup: dict[str, Any]) -> None:
        self.setup = {"broker": broker, "task": {}, **setup}
        self.directory = directory
        self.app = make(self.setup)
        self.settings: Settings = settings_of(self.app)
        self.downloads = Downloads(self.app, self.settings)
        self.partial = self.settings.run_dir / "downloads" / "partial"

    @contextmanager
    def worker(self, concurrency: int = 2, pool: str = "prefork") -> Iterator[psutil.Process]:
        """A worker that is ready; its whole process group is gone afterwards."""
        log = self.directory / f"worker-{time.monotonic_ns()}.log"
        command = f"-m celery -A tests.integration.download.app worker -P {pool} -c {concurrency}"
        worker = Forked(
            [*command.split(), "-l", "INFO", "--without-mingle"],
            log,
            directory=ROOT,
            environ={**os.environ, "CLOCHE_TEST": json.dumps(self.setup), "C_FORCE_ROOT": "1"},
        )
        worker.ready = " ready."
        try:
            with worker:
                yield psutil.Process(worker.pid)
        finally:
            print(log.read_text())

    def state(self, id: str) -> DownloadState:
        return self.now(id).state

    def now(self, id: str) -> Download:
        found = self.downloads.get(id)
        assert found is not None
        return found

    def until(self, id: str, *states: DownloadState, timeout: float = 30) -> Download:
        wait_until(lambda: self.state(id) in states, f"{states}", timeout)
        return self.now(id)

    def until_received(self, id: str, size: int) -> Download:
        wait_until(lambda: self.now(id).received >= size, f"{size} bytes")
        return self.now(id)

    def over(self, id: str, timeout: float = 60) -> Download:
        wait_until(lambda: not self.state(id).active, "the end of the download", timeout)
        return self.now(id)


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


Stacks = Callable[..., Stack]


@pytest.fixture
def stacks(download_broker: str, tmp_path: Path) -> Iterator[Stacks]:
    """Makes stacks: ``download`` settings, ``task`` attributes, further set-up."""
    with ExitStack() as cleanup:
        client = redis.Redis.from_url(download_broker)
        cleanup.callback(client.close)
        client.flushall()

        def make_stack(download: dict[str, Any] | None = None, **setup: Any) -> Stack:
            chosen = {"allow_networks": ["127.0.0.0/8"], **(download or {})}
            settings = {"run_dir": str(tmp_path / "run"), "download": chosen}
            stack = Stack(download_broker, tmp_path, {"settings": settings, **setup})
            cleanup.callback(stack.app.close)
            return stack

        yield make_stack
