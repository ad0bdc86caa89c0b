"""Servers other than the plain one: Debian's Redis (TLS), Sentinel."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from cloche.broker.server import bundled_server
from cloche.testing import free_port

#: Where tools/test-servers.sh unpacks Debian's packages, without installing them.
UNPACKED = Path(__file__).parents[3] / ".venv" / "servers"


def debian_redis() -> Path | None:
    """Redis with TLS: Debian's, unpacked or installed."""
    unpacked = UNPACKED / "usr" / "bin" / "redis-server"
    if unpacked.exists():
        return unpacked
    found = shutil.which("redis-server")
    return Path(found) if found else None


class ServerProcess:
    """A server program with a configuration of its own, on a free loopback port."""

    def __init__(
        self,
        directory: Path,
        lines: list[str],
        *,
        program: Path | None = None,
        sentinel: bool = False,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self._conf = directory / "server.conf"
        self._conf.write_text("\n".join([f"dir {directory}", 'save ""', *lines]) + "\n")
        if sentinel:
            self._conf.write_text("\n".join([f"dir {directory}", *lines]) + "\n")
        self._command = [str(program or bundled_server()), str(self._conf)]
        if sentinel:
            self._command.append("--sentinel")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        libraries = UNPACKED / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        if error is not None:
            print((self.directory / "log").read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def wait_ready(self, client: redis.Redis, seconds: float = 10) -> None:
        """Until it answers ``client``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                client.ping()
            except redis.RedisError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.02)
            else:
                return
