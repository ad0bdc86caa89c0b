"""Schedulers as people run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import clean_environ, wait_for

ROOT = Path(__file__).parents[3]
APP = "tests.integration.beat.app"


class Beat:
    """``cloche beat`` of a directory of its own."""

    def __init__(self, directory: Path, broker: str, app: str = APP, **settings: str) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.environ = clean_environ(
            CLOCHE_BROKER__URL=broker, PYTHONPATH=str(ROOT), CLOCHE_BEAT__LOCK="2", **settings
        )
        self.log = directory / "beat.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cloche", "beat", "-A", app],
                cwd=directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, words: str, deadline: float = 30) -> None:
        wait_for(f"{words!r} in\n{self.output}", lambda: words in self.output, deadline)

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Another command of the same directory and settings: exit code and what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "cloche", *arguments, "-A", APP],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout or done.stderr

    def schedules(self) -> dict[str, Any]:
        code, text = self.ask("schedules", "--json")
        assert code == 0, text
        found: dict[str, Any] = json.loads(text)
        return {**found, "schedules": {one["name"]: one for one in found["schedules"]}}

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


StartBeat = Callable[..., Beat]


@pytest.fixture
def start_beat(tmp_path: Path) -> Iterator[StartBeat]:
    """Start schedulers: ``start(broker_url, **environ)``; ``where`` is a directory's name."""
    started: list[Beat] = []

    def start(broker: str, where: str = "", **settings: str) -> Beat:
        beat = Beat(tmp_path / (where or str(len(started))), broker, **settings)
        started.append(beat)
        return beat

    yield start
    for beat in started:
        beat.close()
