"""Stopping the server that an earlier run left on our data directory, and no other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from cloche.broker.connection.address import Address
from cloche.broker.connection.probe import client_of
from cloche.broker.embedded.directory import DataDirectory
from cloche.errors import ProcessError

_STOP_TIMEOUT = 10.0  # seconds a server may take to write its last data and go


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """An earlier server of ours, and how it was ended: ``asked`` or ``killed``."""

    pid: int
    how: str

    def describe(self) -> str:
        """One line for the start's log."""
        return f"stopped the embedded broker of an earlier run (pid {self.pid}, {self.how})"


def reclaim(files: DataDirectory) -> Reclaimed | None:
    """End our earlier server, if it still runs: asked to, else by force.

    By force may cost what it has not yet written: at most two seconds, and only with
    ``everysec`` on a slow disk (decision 0003).
    Raises ProcessError if it survives even that.
    """
    if not os.path.isdir(files.path):  # False where we may not look, too
        return None
    found = _answering(files) or _silent(files)
    if found is None:
        return None
    if _gone(found, _STOP_TIMEOUT):
        return Reclaimed(found.pid, "asked")
    found.kill()
    if _gone(found, _STOP_TIMEOUT):
        return Reclaimed(found.pid, "killed")
    raise ProcessError(
        f"The embedded broker of an earlier run (pid {found.pid}) does not end",
        why="it was asked to, then killed; it may hang in the kernel on a dead disk",
        fix=f"see what it waits for: cat /proc/{found.pid}/stack, or choose another run_dir",
    )


def _answering(files: DataDirectory) -> psutil.Process | None:
    """Our server, reached by its socket with our password, and asked to end.

    Not by its port: who listens there now may be a stranger, who would get the password.
    """
    at = Address(masked="", path=str(files.socket()), password=files.password())
    with client_of(at, connect_timeout=1, socket_timeout=2) as client:
        try:
            process = _ours(client, files)
            if process is not None:
                # Writes and syncs the append-only file; NOSAVE spares an RDB nobody reads.
                client.shutdown(nosave=True)
        except (redis.RedisError, OSError):
            return None
    return process


def _ours(client: redis.Redis, files: DataDirectory) -> psutil.Process | None:
    """The server's process if it works on our directory.

    INFO and CONFIG are answered even while it loads its data.
    """
    directory = client.config_get("dir").get("dir") or ""
    pid = int(client.info("server")["process_id"])
    if Path(directory).resolve() != files.path.resolve():
        return None
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None  # another pid namespace: not ours to end


def _silent(files: DataDirectory) -> psutil.Process | None:
    """Our server where it does not answer (stopped, hanging): by pid and command line."""
    pid = files.pid()
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        if str(files.config) not in process.cmdline():
            return None
        process.terminate()
        process.resume()
    except psutil.NoSuchProcess:
        return None
    return process


def _gone(process: psutil.Process, timeout: float) -> bool:
    try:
        process.wait(timeout)
    except psutil.TimeoutExpired:
        # A zombie of ours holds nothing any more; whoever started it will reap it.
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    return True
