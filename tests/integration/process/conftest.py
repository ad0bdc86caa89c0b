"""A run directory, a supervisor in it, and a ledger of what its processes went through."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloche.process.identity import Identity
from cloche.process.output import Output
from cloche.process.run_directory import RunDirectory
from cloche.process.spec import ProcessSpec
from cloche.process.status import ProcessState, ProcessStatus
from cloche.process.stopping import kill_carriers
from cloche.process.supervisor import Supervisor
from cloche.testing import wait_until

ACTOR = str(Path(__file__).with_name("actor.py"))


@dataclass
class Ledger:
    """The file the actors write to."""

    path: Path

    @property
    def entries(self) -> list[tuple[str, str, int]]:
        """(name, what, pid) in the order written."""
        if not self.path.exists():
            return []
        lines = (line.split() for line in self.path.read_text().splitlines())
        return [(name, what, int(pid)) for name, what, pid in lines]

    def order(self, *whats: str) -> list[str]:
        return [f"{name} {what}" for name, what, _ in self.entries if what in whats]

    def pid(self, name: str, what: str) -> int:
        pids: list[int] = wait_until(
            lambda: [pid for n, w, pid in self.entries if (n, w) == (name, what)]
        )
        return pids[-1]

    def actor(self, name: str, *words: str) -> list[str]:
        """The command of an actor that writes here."""
        return [sys.executable, ACTOR, name, str(self.path), *words]


class Stage:
    """Runs one supervisor per test and remembers what it told."""

    def __init__(self, path: Path) -> None:
        self.directory = RunDirectory(path)
        self.screen = io.StringIO()
        self.changes: list[ProcessStatus] = []

    def run(
        self,
        specs: list[ProcessSpec],
        play: Callable[[Supervisor], Coroutine[Any, Any, None]],
    ) -> None:
        """Make a supervisor and let ``play`` use it; whatever it left is stopped."""

        async def whole() -> None:
            output = Output(self.screen, logs=self.directory.logs)
            supervisor = Supervisor(
                specs,
                run_directory=self.directory,
                output=output,
                on_change=self.changes.append,
            )
            try:
                await play(supervisor)
            finally:
                supervisor.kill()
                await supervisor.run()
                output.close()

        asyncio.run(whole())

    def states(self, name: str) -> list[ProcessState]:
        return [status.state for status in self.changes if status.name == name]


def now(supervisor: Supervisor, name: str) -> ProcessStatus:
    return next(status for status in supervisor.status() if status.name == name)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """As :func:`eventually`, letting the loop run."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)
    return value


def gone(pid: int) -> bool:
    return Identity.of(pid) is None


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "run")
    yield stage
    kill_carriers(stage.directory.instance)
