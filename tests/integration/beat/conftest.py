"""Schedulers as people run them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.testing import clean_environ, wait_until
from tests import commands
from tests.commands import Forked

ROOT = Path(__file__).parents[3]
APP = "tests.integration.beat.app"


class Beat(Forked):
    """``cloche beat`` of a directory of its own."""

    def __init__(self, directory: Path, broker: str, app: str = APP, **settings: str) -> None:
        directory.mkdir(exist_ok=True)
        super().__init__(
            ["-m", "cloche", "beat", "-A", app],
            directory / "beat.log",
            environ=clean_environ(
                CLOCHE_BROKER__URL=broker, PYTHONPATH=str(ROOT), CLOCHE_BEAT__LOCK="2", **settings
            ),
        )
        self.start()

    def wait_says(self, words: str, deadline: float = 30) -> None:
        wait_until(lambda: words in self.output, f"{words!r} in\n{self.output}", deadline)

    def ask(self, *arguments: str, app: str = APP) -> tuple[int, str]:
        """Another command of the same directory and settings: exit code and what it printed."""
        done = commands.cloche(*arguments, "-A", app, cwd=self.directory, env=self.environ)
        return done.returncode, done.stdout or done.stderr

    def schedules(self) -> dict[str, Any]:
        code, text = self.ask("schedules", "--json")
        assert code == 0, text
        found: dict[str, Any] = json.loads(text)
        return {**found, "schedules": {one["name"]: one for one in found["schedules"]}}


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
