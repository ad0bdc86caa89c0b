"""The loopback port of an embedded broker: the one asked for, the last one, or a free one."""

from __future__ import annotations

import socket
import zlib
from pathlib import Path

import psutil

from cloche.errors import PortTakenError

#: Below the ephemeral range (32768 up on Linux), where any outgoing connection may take a
#: port while its server is away.
_FIRST, _COUNT = 20000, 10000


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis does
        try:
            trial.bind(("127.0.0.1", port))
            trial.listen(1)
        except OSError:
            return False
    return True


def free_port(seed: str, *, first: int = _FIRST) -> int:
    """A free port of the ten thousand from ``first``; the same ``seed`` tries them alike.

    Raises PortTakenError where all are in use.
    """
    start = zlib.crc32(seed.encode()) % _COUNT
    for step in range(_COUNT):
        port = first + (start + step) % _COUNT
        if is_free(port):
            return port
    raise PortTakenError("No port is free on this machine", port=first, free=0)


def taken(port: int, directory: Path) -> PortTakenError:
    """The error for a port that was asked for and is in use."""
    free = free_port(str(directory))
    return PortTakenError(
        f"Port {port} of the embedded broker is taken",
        port=port,
        free=free,
        why=f"{_owner(port)} listens on it",
        fix=f"set broker.port to a free one ({free} is), leave it unset, or stop that process",
    )


def _owner(port: int) -> str:
    try:
        links = psutil.net_connections("tcp")
    except psutil.Error:
        return "another process"  # macOS shows them to root only
    for link in links:
        if link.status == psutil.CONN_LISTEN and link.laddr.port == port and link.pid:
            try:
                return f"{psutil.Process(link.pid).name()} (pid {link.pid})"
            except psutil.Error:
                break
    return "another process"
