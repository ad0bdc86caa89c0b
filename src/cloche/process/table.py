"""The operating system's process table, as far as identity and clean-up need it.

On Linux it is read from ``/proc`` with the standard library alone, so that the guard needs
no installed package; elsewhere psutil reads it. A zombie counts as gone everywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if sys.platform != "linux":
    import psutil

#: In the environment of every child: which run it belongs to, and as what.
INSTANCE = "CLOCHE_INSTANCE"
PROCESS = "CLOCHE_PROCESS"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One live process. ``started`` as in :class:`cloche.process.identity.Identity`."""

    pid: int
    parent: int
    group: int
    session: int
    started: float


@dataclass(frozen=True, slots=True)
class Carrier:
    """A live process of ours, told by its environment. ``name`` is the spec it descends from."""

    row: TableRow
    name: str


def row(pid: int, *, zombie: bool = False) -> TableRow | None:
    """The live process ``pid``, or None when there is none. ``zombie``: a zombie will do."""
    return _row(pid, zombie=zombie) if pid > 0 else None


def rows() -> Iterator[TableRow]:
    """Every live process this user may see."""
    for pid in _pids():
        found = _row(pid)
        if found is not None:
            yield found


def members(group: int) -> tuple[TableRow, ...]:
    """The live processes of a process group."""
    return tuple(found for found in rows() if found.group == group)


def carriers(instance: str) -> tuple[Carrier, ...]:
    """The live processes of this user that carry our instance in their environment.

    Finds what changed its session or was never recorded. A program that overwrites its
    environment (setproctitle does) escapes it, so groups are looked at as well.
    """
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        environment = _environment(pid)
        if environment.get(INSTANCE) == instance and (live := _row(pid)) is not None:
            found.append(Carrier(live, environment.get(PROCESS, "")))
    return tuple(found)


if sys.platform == "linux":
    _TICKS = os.sysconf("SC_CLK_TCK")

    @cache
    def boot_id() -> str:
        """Changes with every boot: identities of another boot are all gone."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def _pids() -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]

    def _row(pid: int, *, zombie: bool = False) -> TableRow | None:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # proc(5): "pid (comm) state ppid pgrp session …"; comm may hold spaces and ')'.
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X") and not zombie:
            return None
        return TableRow(
            pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]) / _TICKS
        )

    def _environment(pid: int) -> dict[str, str]:
        try:
            raw = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return {}
        pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
        return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}

else:

    def boot_id() -> str:
        """Start times are Unix seconds here and cannot repeat after a boot."""
        return ""

    def _pids() -> list[int]:
        return list(psutil.pids())

    def _row(pid: int, *, zombie: bool = False) -> TableRow | None:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE and not zombie:
                return None
            return TableRow(
                pid, process.ppid(), os.getpgid(pid), os.getsid(pid), process.create_time()
            )
        except (psutil.Error, OSError):
            return None

    def _environment(pid: int) -> dict[str, str]:
        try:
            return dict(psutil.Process(pid).environ())
        except (psutil.Error, OSError):
            return {}
