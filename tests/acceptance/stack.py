"""A whole ``cloche up`` in a directory of its own, as a person would start it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeVar

import httpx
import psutil

#: Variables of the person who runs the tests that must not reach the stack.
FOREIGN = ("CLOCHE_", "CELERY_", "REDIS_URL", "DATABASE_URL")


T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], deadline: float = 30.0) -> T:
    """The condition's first true value, asked until ``deadline`` seconds are over."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def clean_environ(**extra: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    # The venv's scripts first, as after activation.
    return {**own, "PATH": f"{Path(sys.executable).parent}:{own.get('PATH', '')}", **extra}


class Stack:
    """``cloche up`` as a child process; use as a context manager."""

    def __init__(
        self, directory: Path, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.service_port, self.dashboard_port = free_port(), free_port()
        defaults = {
            "CLOCHE_SERVICE__PORT": str(self.service_port),
            "CLOCHE_DASHBOARD__PORT": str(self.dashboard_port),
            "CLOCHE_BROKER__EMBEDDED": "always",
            "CLOCHE_DOWNLOAD__ALLOW_NETWORKS": '["127.0.0.0/8"]',
        }
        self.environ = clean_environ(**{**defaults, **(environ or {})})
        self.arguments = arguments
        self.log = directory / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def service(self) -> str:
        return f"http://127.0.0.1:{self.service_port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def launch(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cloche", "up", *self.arguments],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_ready(self, deadline: float = 60.0) -> Self:
        wait_for("the stack to be ready", self._ready_or_dead, deadline)
        assert self.process is not None
        assert self.process.poll() is None, self.output
        return self

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True
        return "ready in" in self.output and self.get("/readyz") == httpx.codes.OK

    def get(self, path: str) -> int | None:
        try:
            return httpx.get(self.service + path, timeout=5).status_code
        except httpx.TransportError:
            return None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_exit(self, deadline: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(deadline)

    def processes(self, name: str | None = None) -> list[psutil.Process]:
        """Every process that works in this stack's directory, whoever started it.

        With ``name``, only the main process of that name of this launcher.
        """
        return [process for process in psutil.process_iter() if self._is_ours(process, name)]

    def _is_ours(self, process: psutil.Process, name: str | None) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if name is None:
                return Path(process.cwd()).is_relative_to(self.directory)
            launcher = self.process.pid if self.process else None
            mine = bool(process.ppid() == launcher)
            return mine and bool(process.environ().get("CLOCHE_PROCESS") == name)
        except (psutil.Error, OSError):
            return False

    def wait_gone(self, deadline: float = 30.0) -> None:
        """Fails with what is still there."""
        try:
            wait_for("all processes gone", lambda: not self.processes(), deadline)
        except AssertionError:
            left = [" ".join(process.cmdline()) for process in self.processes()]
            raise AssertionError(f"left behind: {left}\n{self.output[-3000:]}") from None

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for process in self.processes():
            process.kill()

    def __enter__(self) -> Self:
        return self.launch().wait_ready()

    def __exit__(self, *_: object) -> None:
        self.close()
