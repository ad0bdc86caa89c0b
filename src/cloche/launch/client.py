"""Asking the launcher of a run directory, and starting one where none runs.

Imports no Celery: `cloche start`, when all runs already, is a question over a socket.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.errors import NotRunningError, ProcessError
from cloche.file_lock import FileLock
from cloche.process import table
from cloche.process.control import SOCKET, Fields, call
from cloche.process.identity import Identity
from cloche.process.run_directory import RunDirectory
from cloche.settings import Settings

#: Seconds a living launcher may take until it can be asked: it imports the application and
#: tries the broker first.
ANSWER_TIMEOUT = 120.0

_TICK = 0.05

Event = Callable[[Fields], None]


class Launcher:
    """The launcher of a run directory, which may or may not run."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir.absolute()

    @property
    def directory(self) -> RunDirectory:
        """Its run directory; made if it is not there."""
        return RunDirectory(self._path)

    def pid(self) -> int | None:
        """The pid of the living launcher; None if there is none."""
        if not self._path.is_dir():
            return None
        owner = self.directory.owner()
        return owner.identity.pid if owner else None

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        on_event: Event | None = None,
        timeout: float | None = None,
        patience: float = ANSWER_TIMEOUT,
    ) -> Fields:
        """Ask it. Waits ``patience`` seconds while it is being started.

        ``timeout`` is the longest silence accepted then. Raises NotRunningError where none
        runs, and whatever it answers with.
        """
        deadline = time.monotonic() + patience
        while self.pid() is not None:
            if (answer := self._try(request, on_event, timeout)) is not None:
                return answer
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"the launcher (pid {self.pid()}) does not answer",
                    fix=f"see {self._path / 'logs' / 'cloche.log'}",
                )
            time.sleep(_TICK)
        raise NotRunningError(
            f"nothing runs in {self._path}", fix="`cloche start` or `cloche up` starts it"
        )

    def _try(
        self, request: Mapping[str, Any], on_event: Event | None, timeout: float | None
    ) -> Fields | None:
        """One attempt; None if nobody listens (yet, or any more)."""
        path = self.directory.socket_path(SOCKET)
        if not path.exists():
            return None
        try:
            return call(path, request, on_event=on_event or (lambda event: None), timeout=timeout)
        except NotRunningError:
            return None

    def wait_gone(self, say: Callable[[str], None]) -> None:
        """Return once launcher and guard are gone and nothing is left of an earlier run.

        Stops what a launcher and a guard that were both killed left behind.
        """
        if self._path.is_dir():
            directory = self.directory
            try:
                directory.lock(say=say)
            except ProcessError:
                if directory.owner() is None:
                    raise
                return  # somebody has started another one already
            try:
                directory.reclaim(say)
            finally:
                directory.unlock()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """One terminal at a time looks whether to start it; the others wait their turn."""
        with FileLock.acquire(self.directory.path / "start.lock"):
            yield


@dataclass
class Daemon:
    """A launcher started in the background, in a session of its own, with no terminal."""

    launcher: Launcher
    popen: subprocess.Popen[bytes]
    say: Path
    errors: Path
    _said: int
    _failed: int

    @classmethod
    def spawn(
        cls, launcher: Launcher, arguments: Sequence[str], environ: Mapping[str, str]
    ) -> Daemon:
        """Start ``cloche start --foreground`` with ``arguments``; returns at once."""
        logs = launcher.directory.logs
        say, errors = logs / "cloche.log", logs / "launcher.log"
        said, failed = _size(say), _size(errors)
        # It is to outlive us, also where we are a process of some other launcher.
        own = (table.INSTANCE, table.PROCESS)
        with errors.open("ab") as log:
            popen = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "cloche"),
                    *("start", "--foreground", "--detached", *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={key: value for key, value in environ.items() if key not in own},
                start_new_session=True,
            )
        return cls(launcher, popen, say, errors, said, failed)

    def wait_ready(self, relay: Callable[[str], None]) -> int | None:
        """Relay what it says until it is ready (None) or has ended (its exit code)."""
        while True:
            ended = self.popen.poll()
            ready = ended is None and self._ready()
            for line in self._news():
                relay(line)
            if ended is not None:
                return ended
            if ready:
                return None
            time.sleep(_TICK)

    def failure(self) -> str:
        """What it wrote to stderr."""
        with self.errors.open("rb") as file:
            file.seek(self._failed)
            return file.read().decode(errors="replace")

    def _ready(self) -> bool:
        owner = self.launcher.directory.owner()
        if owner is None or owner.identity != Identity.of(self.popen.pid):
            return False
        path = self.launcher.directory.socket_path(SOCKET)
        try:
            return bool(call(path, {"do": "ping"}, timeout=5)["started"])
        except ProcessError:
            return False

    def _news(self) -> list[str]:
        try:
            with self.say.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._said:
                    self._said = 0  # rotated
                file.seek(self._said)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._said += len(whole)
        return whole.decode(errors="replace").splitlines()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def given_workers(settings: Settings) -> dict[str, Any]:
    """The declared workers as plain fields, only those somebody set."""
    return {
        name: worker.model_dump(mode="json", exclude_unset=True)
        for name, worker in settings.workers.items()
    }


def digests(settings: Settings) -> dict[str, str]:
    """Each setting a launcher cannot change while it runs, as a hash: compared, never shown."""
    dumped = settings.model_dump(mode="python", exclude={"workers", "app", "run_dir"})
    return {
        key: hashlib.sha256(_revealed(value).encode()).hexdigest() for key, value in _flat(dumped)
    }


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield ".".join(path), value


def _revealed(value: Any) -> str:
    secret = getattr(value, "get_secret_value", None)
    return json.dumps(secret() if secret is not None else value, default=str)
