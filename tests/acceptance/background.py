"""A stack in the background of a directory of its own, and numbered tasks to count with."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from cloche.testing import wait_until
from tests import commands
from tests.acceptance.stack import Stack

#: A project that knows nothing of Cloche. Every task writes its number to a ledger, so that
#: what was lost and what ran twice can be told.
SHOP = """
import os
import subprocess
import time

from celery import Celery

app = Celery("shop", broker=os.environ.get("REDIS_URL"))
app.conf.task_default_queue = "shop"
app.conf.task_acks_late = True
LEDGER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ledger")


def note(line):
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, f"{line}\\n".encode())
    os.close(handle)


@app.task(name="shop.count", ignore_result=True)
def count(number, seconds=0.0):
    time.sleep(seconds)
    note(number)


@app.task(name="shop.nap", ignore_result=True)
def nap(seconds):
    note("begun")
    time.sleep(seconds)
    note("slept")


@app.task(name="shop.family", ignore_result=True)
def family(seconds):
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    note("family")
    time.sleep(seconds)
"""

PUBLISH = """
import sys
from cloche.launch.discovery import application
from cloche.settings import load
app = application(load())
first, last, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for number in range(first, last):
    app.send_task("shop.count", (number, seconds), queue="shop", retry_policy={"max_retries": 60})
"""
SEND = """
import json, sys
from cloche.launch.discovery import application
from cloche.settings import load
app = application(load())
print(app.send_task(sys.argv[1], json.loads(sys.argv[2]), queue="shop").id)
"""


class Background(Stack):
    """``cloche start`` and its relatives in one directory."""

    def __init__(
        self, directory: Path, *, environ: Mapping[str, str] | None = None, project: str = SHOP
    ) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "shop.py").write_text(project)
        few = {"worker": {"queues": ["shop"], "concurrency": 2}}
        super().__init__(directory)
        self.environ |= {
            "CLOCHE_APP": "shop",
            "CLOCHE_WORKERS": json.dumps(few),
            "CLOCHE_BROKER__LEASE": "3",
            **(environ or {}),
        }
        self.ledger = directory / "ledger"

    def open(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """``cloche WORDS`` as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "cloche", *words],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def cloche(self, *words: str, code: int = 0, timeout: float = 120) -> str:
        """What ``cloche WORDS`` prints; it must end with ``code``."""
        done = commands.cloche(*words, cwd=self.directory, env=self.environ, timeout=timeout)
        told = f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, told
        assert "Traceback" not in told, told
        return done.stdout if code == 0 else done.stderr

    def on_terminal(
        self, *words: str, columns: int = 100, asked: str = "", answer: str = "", **more: str
    ) -> str:
        """What ``cloche WORDS`` shows on a terminal, where ``asked`` is given ``answer``."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "cloche", *words],
            cwd=self.directory,
            env={**self.environ, "TERM": "xterm", "COLUMNS": str(columns), **more},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        screen = ""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if select.select([master], [], [], 0.2)[0]:
                    screen += os.read(master, 65536).decode(errors="replace")
            except OSError:  # the terminal's last process has gone (EIO)
                break
            if asked and asked in screen:
                os.write(master, answer.encode())
                asked = ""
        os.close(master)
        assert process.wait(30) == 0, screen
        return screen.replace("\r\n", "\n")

    def ps(self) -> dict[str, dict[str, Any]]:
        """``cloche ps --json`` by name."""
        rows = json.loads(self.cloche("ps", "--json"))["processes"]
        assert len({row["name"] for row in rows}) == len(rows), rows
        return {row["name"]: row for row in rows}

    def python(self, code: str, *words: str) -> str:
        """Run a program in the project."""
        done = commands.python(code, *words, cwd=self.directory, env=self.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def publish(self, first: int, last: int, seconds: float = 0.0) -> None:
        """Numbered tasks ``first`` to ``last - 1``; returns once all are acknowledged."""
        self.python(PUBLISH, str(first), str(last), str(seconds))

    def send(self, name: str, *arguments: object) -> str:
        """One task; its id."""
        return self.python(SEND, name, json.dumps(arguments))

    def written(self) -> list[str]:
        return self.ledger.read_text().split("\n")[:-1] if self.ledger.exists() else []

    def wait_counted(self, last: int, deadline: float = 60) -> None:
        """Every number below ``last`` has been written, however often."""

        def missing() -> set[int]:
            return set(range(last)) - {int(line) for line in self.written() if line.isdigit()}

        wait_until(lambda: not missing(), f"{last} tasks", deadline)

    def mains(self, *words: str) -> list[psutil.Process]:
        """Main processes working here whose command line has all ``words``."""
        found = [one for one in self.processes() if _has(one, words)]
        pids = {one.pid for one in found}
        return [one for one in found if _parent(one) not in pids]

    def workers(self) -> list[psutil.Process]:
        """Main processes of workers, whoever started them."""
        return self.mains("worker")

    def launchers(self) -> list[psutil.Process]:
        return self.mains("cloche", "start", "--detached")

    def main(self, name: str) -> psutil.Process:
        """The main process of that name of a running launcher."""
        return psutil.Process(wait_until(lambda: self.ps().get(name, {}).get("pid"), name))

    def output_of(self, name: str) -> str:
        path = self.directory / ".cloche" / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for launcher in self.launchers():
            launcher.kill()
        end = time.monotonic() + 5
        while self.processes() and time.monotonic() < end:
            for process in self.processes():
                try:
                    process.kill()
                except psutil.Error:
                    continue
            time.sleep(0.05)


def _has(process: psutil.Process, words: tuple[str, ...]) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return all(
        any(word == part or word == os.path.basename(part) for part in line) for word in words
    )


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def numbered(lines: list[str]) -> Iterator[int]:
    return (int(line) for line in lines if line.isdigit())
