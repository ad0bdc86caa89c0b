"""Real servers for tests, ours and yours: quick to start, easy to kill, gone with the test run.

::

    with BrokerProcess() as broker:
        app = Celery(broker=broker.url)
        broker.kill()      # kill -9
        broker.start()     # the same port, the same data
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis

from cloche.broker import ports
from cloche.broker.configuration import quoted
from cloche.broker.server import bundled_server, find_server
from cloche.errors import NotReadyError

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def free_port() -> int:
    """A loopback port nobody listens on now, and that no outgoing connection will take."""
    return ports.free_port(secrets.token_hex(), first=10000)


class BrokerProcess:
    """A Valkey server on a free loopback port and a unix socket, in a temporary directory.

    ``config`` are further lines of its configuration; ``persistent`` switches on an
    append-only file that is synced at every write, so that ``kill`` loses nothing.
    On Linux it dies with the thread that started it (PR_SET_PDEATHSIG): start it from one
    that lives as long as the tests do.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        config: Mapping[str, str | int] | None = None,
        persistent: bool = False,
        port: int | None = None,
    ) -> None:
        self.password = password
        self.port = port or free_port()
        self.config = dict(config or {})
        self.persistent = persistent
        self._program = bundled_server() or find_server().path
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

    @property
    def directory(self) -> Path:
        """Where its data, its log and its socket are; made on first use."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="cloche-test-"))
        return self._directory

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0."""
        return f"redis://{self._userinfo}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """``redis+socket://`` URL of database 0."""
        return f"redis+socket://{self._userinfo}{quote(str(self._socket))}?virtual_host=0"

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        return self._running.pid

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return (self.directory / "log").read_text(errors="replace")

    def client(self) -> redis.Redis:
        """A new client that decodes replies to str; the caller closes it."""
        return redis.Redis(
            port=self.port, password=self.password, decode_responses=True, socket_timeout=5
        )

    def start(self, *, wait: bool = True, timeout: float = 10) -> None:
        """Start it, on the same port and data as before; wait until it answers.

        Raises NotReadyError if it does not answer within ``timeout`` seconds.
        """
        configuration = self.directory / "server.conf"
        configuration.write_text(self._configuration())
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with(os.getpid()),
            )
        if wait:
            self._wait_until_ready(time.monotonic() + timeout)

    def stop(self, timeout: float = 10) -> None:
        """End it in good order (SIGTERM)."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL, 10)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._running.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its directory."""
        if self._process is not None:
            self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process

    @property
    def _userinfo(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    @property
    def _socket(self) -> Path:
        return self.directory / "s"

    def _configuration(self) -> str:
        lines: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": quoted(str(self._socket)),
            "dir": quoted(str(self.directory)),
            "save": '""',
            "appendonly": "yes" if self.persistent else "no",
            "appendfsync": "always",
        }
        if self.password:
            lines["requirepass"] = quoted(self.password)
        lines |= self.config
        return "".join(f"{key} {value}\n" for key, value in lines.items())

    def _wait_until_ready(self, deadline: float) -> None:
        pause = 0.002
        while not self._answers():
            if self._running.poll() is not None or time.monotonic() > deadline:
                raise NotReadyError(
                    f"The test broker on port {self.port} did not start", why=self.log[-2000:]
                )
            time.sleep(pause)

    def _answers(self) -> bool:
        """Whether the socket answers an inline PING, be it to ask for a password."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            try:
                link.connect(str(self._socket))
                link.sendall(b"PING\r\n")
                return link.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    def _end(self, number: signal.Signals, timeout: float) -> None:
        process = self._running
        process.send_signal(number)
        if number is signal.SIGTERM:
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
