"""A worker that all programs of this folder publish to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.testing import BrokerProcess, wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A worker for all tests of this package, and what a program needs to reach it."""
    directory = tmp_path_factory.mktemp("forks")
    with BrokerProcess() as broker:
        environ = {
            **os.environ,
            "CLOCHE_BROKER__URL": broker.url,
            "CLOCHE_RUN_DIR": str(directory),
            "PYTHONPATH": str(ROOT),
        }
        output = directory / "worker.log"
        arguments = ["-A", "tests.integration.fork.program", "worker", "-P", "threads", "-c", "4"]
        with output.open("wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", *arguments, "-Q", "default", "-l", "info"],
                cwd=directory,
                env=environ,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(lambda: " ready." in output.read_text(), "the worker listens")
            yield environ
        finally:
            worker.terminate()
            worker.wait(30)
