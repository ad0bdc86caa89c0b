"""Workers and whole stacks as processes of their own, as people run them."""

from __future__ import annotations

import contextlib
import os
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import psutil

T = TypeVar("T")

#: Variables of the person who runs the tests that must not reach the processes.
FOREIGN = ("CLOCHE_", "CELERY_", "REDIS_URL", "DATABASE_URL")


def wait_until(
    condition: Callable[[], T | None], what: str = "the condition", seconds: float = 60.0
) -> T:
    """The first value of ``condition`` that is true. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def clean_environ(**extra: str) -> dict[str, str]:
    """The variables of this process without Cloche's and Celery's, and ``extra``; the scripts of
    this environment come first in PATH, as after activation."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return {**own, "PATH": f"{Path(sys.executable).parent}:{own.get('PATH', '')}", **extra}


class ChildProcess:
    """A Python program (``python WORDS``) in a session of its own, its output in the file ``log``.

    As a context manager it is started and ready inside, and gone with all it has started after.
    """

    #: What it prints once it is ready.
    ready = ""

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.words = list(words)
        self.log_path = log
        self.directory = directory or log.parent
        self.environ = dict(clean_environ() if environ is None else environ)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it; the log goes on where it was."""
        self._process = self._spawn()
        return self

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.words],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """It must have been started."""
        if self._process is None:
            raise RuntimeError("the process was not started")
        return self._process

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process for ours that was started otherwise: on a terminal, say."""
        self._process = process

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.process.poll() is not None

    def says(self, words: str) -> bool:
        """Whether it has printed these words."""
        return words in self.output

    def wait_ready(self, seconds: float = 60.0, *, times: int = 1) -> Self:
        """Until it has said for the ``times``-th time that it is. Raises AssertionError with its
        output if it ends or does not become ready."""
        try:
            wait_until(lambda: self._is_ready(times) or self.ended, "to be ready", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output[-6000:]}") from None
        if self.ended:
            raise AssertionError(f"it has ended\n{self.output[-6000:]}")
        return self

    def _is_ready(self, times: int) -> bool:
        return self.output.count(self.ready) >= times

    def signal(self, number: int, *, group: bool = False) -> None:
        """To the process, or to all of its group."""
        if group:
            os.killpg(self.pid, number)
        else:
            self.process.send_signal(number)

    def stop(self, seconds: float = 60.0, how: int = signals.SIGTERM) -> int:
        """End it as a supervisor does; its exit code."""
        self.signal(how)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """kill -9 of its group; stopped ones too."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signals.SIGKILL, group=True)
        self.process.wait(10)

    def close(self) -> None:
        """It is gone, however it is."""
        if self.started:
            self.kill()

    def __enter__(self) -> Self:
        self.start()
        try:
            return self.wait_ready()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker(ChildProcess):
    """``cloche worker ARGUMENTS``, or with ``stock`` ``celery worker``, on the application ``app``.

    ``broker`` is a URL; ``environ`` are further variables.
    """

    ready = " ready."

    def __init__(
        self,
        app: str,
        *arguments: str,
        log: Path,
        broker: str | None = None,
        stock: bool = False,
        directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        own = ["cloche", "worker", "-A", app]
        words = ["celery", "-A", app, "worker", "-l", "INFO"] if stock else own
        url = {"CLOCHE_BROKER__URL": broker} if broker else {}
        super().__init__(
            ["-m", *words, *arguments],
            log,
            directory=directory,
            environ=clean_environ(**url, **(environ or {})),
        )


class Stack(ChildProcess):
    """``cloche up ARGUMENTS`` in ``directory``, whose processes are all gone after it."""

    ready = "ready in"

    def __init__(
        self, directory: Path, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            ["-m", "cloche", "up", *arguments],
            directory / "up.log",
            directory=directory,
            environ=clean_environ(**(environ or {})),
        )

    def processes(self, name: str | None = None) -> list[psutil.Process]:
        """Every process that works in the directory, whoever started it.

        With ``name``, only the main process of that name of this launcher.
        """
        return [process for process in psutil.process_iter() if self._is_ours(process, name)]

    def _is_ours(self, process: psutil.Process, name: str | None) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if name is None:
                return Path(process.cwd()).is_relative_to(self.directory)
            mine = self.started and process.ppid() == self.pid
            return bool(mine and process.environ().get("CLOCHE_PROCESS") == name)
        except (psutil.Error, OSError):
            return False

    def wait_gone(self, seconds: float = 30.0) -> None:
        """Until none of its processes is left. Raises AssertionError that names what is."""
        try:
            wait_until(lambda: not self.processes(), "all processes gone", seconds)
        except AssertionError:
            left = [" ".join(process.cmdline()) for process in self.processes()]
            raise AssertionError(f"left behind: {left}\n{self.output[-3000:]}") from None

    def close(self) -> None:
        """Kill what is left of it."""
        if self.started and not self.ended:
            self.process.kill()
            self.process.wait(10)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
