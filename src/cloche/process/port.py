"""Listening ports: who has one, which is free."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

import psutil

from cloche.errors import PortTakenError, ProcessError


def owner(port: int) -> tuple[int, str] | None:
    """(pid, command) of a process that listens on ``port``.

    None if there is none, or if the operating system does not tell (another user's
    process without root).
    """
    try:
        listening = [
            seen.pid
            for seen in psutil.net_connections(kind="tcp")
            if seen.status == psutil.CONN_LISTEN and seen.laddr.port == port
        ]
    except (psutil.Error, OSError):
        return None
    for pid in listening:
        if pid is not None and (command := _command(pid)):
            return pid, command
    return None


def next_free(host: str, port: int, spare: Collection[int] = ()) -> int:
    """The first port after ``port`` that can be listened on and is not to be spared.

    Raises ProcessError if there is none.
    """
    for candidate in range(port + 1, min(port + 1000, 65536)):
        if candidate not in spare and _refusal(host, candidate) is None:
            return candidate
    raise ProcessError(f"no free port between {port + 1} and {min(port + 999, 65535)} on {host}")


def claim(host: str, port: int, spare: Collection[int] = (), *, setting: str = "") -> None:
    """Make sure that ``port`` can be listened on now. ``setting`` is where it is chosen.

    Raises PortTakenError, which names the owner and the next free port (none of ``spare``),
    or ProcessError if the address itself cannot be used.
    """
    refusal = _refusal(host, port)
    if refusal is None:
        return
    if refusal.errno != errno.EADDRINUSE:
        raise ProcessError(
            f"cannot listen on {host}:{port}",
            why=(refusal.strerror or str(refusal)),
            fix=_remedy(refusal),
        )
    found, free = owner(port), next_free(host, port, spare)
    raise PortTakenError(
        f"port {port} is taken{f' ({setting})' if setting else ''}",
        port=port,
        free=free,
        why=f"{found[1]} (pid {found[0]}) listens on it" if found else "another user's process",
        fix=f"stop that process, or use port {free}, which is free"
        + (f": --set {setting}={free}" if setting else ""),
    )


def _refusal(host: str, port: int) -> OSError | None:
    """Why one cannot listen there; None if one can. As servers do, with SO_REUSEADDR."""
    try:
        places = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return error
    absent = None
    usable = False
    for family, kind, protocol, _, address in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                probe.listen(1)
                usable = True
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return error
            absent = error  # "localhost" is ::1 as well, also where there is no IPv6
    return None if usable else absent


def _remedy(refusal: OSError) -> str:
    if refusal.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 need privileges: use a higher one"
    return "use an address of this machine, for instance 127.0.0.1"


def _command(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return " ".join(process.cmdline())[:120] or str(process.name())
    except psutil.Error:
        return ""
