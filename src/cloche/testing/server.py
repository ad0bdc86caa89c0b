"""What all servers for tests have in common: a directory, a port, and a short life."""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from cloche.broker.embedded import ports
from cloche.errors import NotReadyError

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def free_port() -> int:
    """A loopback port nobody listens on now, and that no outgoing connection will take."""
    return ports.free_port(secrets.token_hex(), first=10000)


class ServerProcess(ABC):
    """A server on a loopback port, with a temporary directory; use as a context manager.

    On Linux it dies with the thread that started it (PR_SET_PDEATHSIG): start it from one
    that lives as long as the tests do.
    """

    #: What messages call it.
    kind: ClassVar[str]
    #: Ends it in good order, without waiting for its clients.
    graceful: ClassVar[signal.Signals] = signal.SIGTERM
    #: Ends it at once, when nobody needs its data any more.
    quick: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        #: The user it runs as; None: ours.
        self.user: pwd.struct_passwd | None = None
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """What starts it; whatever it needs in its directory is there afterwards."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves."""

    @property
    def directory(self) -> Path:
        """Where its data and its log are; made on first use."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="cloche-test-"))
            if self.user:
                os.chown(self._directory, self.user.pw_uid, self.user.pw_gid)
        return self._directory

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        return self._running.pid

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self, *, wait: bool = True, timeout: float = 10) -> None:
        """Start it, on the same port and data as before; wait until it answers.

        Raises NotReadyError if it does not answer within ``timeout`` seconds.
        """
        command = self._command()
        user = self.user
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                # After the change of user, which would clear the wish to die.
                preexec_fn=_die_with(os.getpid()),
            )
        if wait:
            self._wait_until_ready(time.monotonic() + timeout)

    def stop(self, timeout: float = 10) -> None:
        """End it in good order."""
        self._end(self.graceful, timeout)

    def kill(self) -> None:
        self._end(signal.SIGKILL, 10)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._running.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove its directory."""
        if self._process is not None:
            self._end(self.quick, 10)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process

    def _wait_until_ready(self, deadline: float) -> None:
        while not self._answers():
            if self._running.poll() is not None or time.monotonic() > deadline:
                raise NotReadyError(
                    f"The test {self.kind} on port {self.port} did not start", why=self.log[-2000:]
                )
            time.sleep(0.002)

    def _end(self, number: signal.Signals, timeout: float) -> None:
        process = self._running
        process.send_signal(number)
        if number is not signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        process.wait(timeout)


def _die_with(parent: int) -> Callable[[], None] | None:
    """What a child does before exec so that it dies with ``parent`` (Linux)."""
    libc = _LIBC
    if libc is None:
        return None

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was asked
            os._exit(1)

    return ask
