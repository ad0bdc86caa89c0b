"""What systemd is told, heard on a real datagram socket; the documented units, verified by it."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche.testing import BrokerProcess, clean_environ, wait_until

ROOT = Path(__file__).parents[3]
APP = "tests.integration.health.project"


class Manager:
    """As systemd: a socket that hears, and the process it started."""

    def __init__(self, directory: Path, broker: str, *command: str) -> None:
        self.heard: list[str] = []
        self.directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = str(directory / "notify")
        self._socket.bind(address)
        self._socket.setblocking(False)
        environ = clean_environ(
            CLOCHE_BROKER__URL=broker,
            CLOCHE_BROKER__EMBEDDED="never",
            CLOCHE_SERVICE__ENABLED="false",
            CLOCHE_DASHBOARD__ENABLED="false",
            CLOCHE_WATCHDOG__ENABLED="false",
            PYTHONPATH=str(ROOT),
            NOTIFY_SOCKET=address,
            WATCHDOG_USEC="1000000",
        )
        with (directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cloche",
                    *command,
                    "-A",
                    "tests.integration.health.project",
                ],
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def listen(self) -> list[str]:
        """All that was heard so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard += self._socket.recv(8192).decode().splitlines()
        return self.heard

    def hears(self, line: str, deadline: float = 30) -> None:
        log = self.directory / "log"
        wait_until(lambda: line in self.listen(), f"{line}\n{log.read_text()}", deadline)

    def signs_within(self, seconds: float) -> int:
        """Signs of life in the next ``seconds``."""
        before = self.listen().count("WATCHDOG=1")
        time.sleep(seconds)  # what is measured, not a wait for something
        return self.listen().count("WATCHDOG=1") - before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait(10)
        self._socket.close()


Start = Callable[..., Manager]


@pytest.fixture
def start(tmp_path: Path, broker: BrokerProcess) -> Iterator[Start]:
    started: list[Manager] = []

    def start(*command: str) -> Manager:
        manager = Manager(tmp_path, broker.url, *command)
        started.append(manager)
        return manager

    yield start
    for manager in started:
        manager.close()


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_worker_gives_signs_of_life_while_it_lives(
    start: Start, broker: BrokerProcess, pool: str
) -> None:
    worker = start("worker", "-P", pool, "-c", "1")
    worker.hears("READY=1")
    assert any(line.startswith("STATUS=consuming ") for line in worker.heard)
    assert worker.signs_within(3) >= 3

    broker.kill()
    assert worker.signs_within(8) >= 8, "an outage is no reason to be restarted"
    broker.start()
    assert worker.signs_within(2) >= 2

    (worker.directory / "wedge").touch()
    wait_until(lambda: (worker.directory / "wedged").exists(), "the wedge")
    wait_until(lambda: worker.signs_within(1.5) == 0, "silence", 20)
    worker.process.kill()


def test_a_scheduler_gives_signs_of_life_and_says_that_it_stops(
    start: Start, broker: BrokerProcess
) -> None:
    beat = start("beat")
    beat.hears("READY=1")
    beat.hears("STATUS=leads: 1 schedule")
    assert beat.signs_within(3) >= 3
    broker.kill()
    assert beat.signs_within(3) >= 3
    broker.start()
    beat.process.terminate()
    assert beat.process.wait(20) == 0
    assert "STOPPING=1" in beat.listen()


def test_the_launcher_is_ready_when_all_is_and_stops_in_order(start: Start) -> None:
    up = start("up")
    up.hears("READY=1", 60)
    up.hears("STATUS=3 of 3 processes are ready")
    assert up.signs_within(3) >= 3
    up.process.send_signal(signal.SIGSTOP)
    assert up.signs_within(2) <= 1
    up.process.send_signal(signal.SIGCONT)
    up.process.terminate()
    up.hears("STOPPING=1")
    assert up.process.wait(40) == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_the_documented_units_are_understood_by_systemd(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "health.md").read_text()
    units = re.findall(r"^```ini\n# (\S+\.service)\n(.*?)^```", text, re.M | re.S)
    assert len(units) >= 2
    for name, unit in units:
        program = shutil.which("true") or "/bin/true"
        (tmp_path / name).write_text(re.sub(r"/srv/proj/\.venv/bin/cloche", program, unit))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        complaints = [line for line in done.stderr.splitlines() if name in line]
        assert (done.returncode, complaints) == (0, []), done.stderr
