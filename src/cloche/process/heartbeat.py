"""The heartbeat of a worker, a small file in the run directory, and what it tells.

It is written over every two seconds.

Whoever asks whether a worker lives need not ask the worker, which may be busy or stopped, nor
the broker, which may be away. Times are monotonic seconds, the same for all processes of a
machine until its next boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cloche.process import table
from cloche.process.identity import Identity
from cloche.records import Health

#: Seconds between two beats; a loop that has nothing to do turns less often.
PERIOD = 2.0

#: Seconds without a beat, or without a turn of the loop, after which something is wrong.
SILENT = 8.0

DIRECTORY = "pulse"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One worker at the moment ``at``.

    ``turned`` is the last turn of its consumer's loop, ``connected`` whether it has a broker.
    ``active`` counts tasks that run, ``reserved`` those and what waits in it, ``processed`` all
    that it began since its start. ``alone``: its loop stands still while its task runs.
    """

    node: str
    pid: int
    started: float
    boot: str
    at: float
    turned: float
    connected: bool
    queues: tuple[str, ...]
    pool: str
    slots: int
    active: int
    reserved: int
    processed: int
    alone: bool = False

    @property
    def name(self) -> str:
        """The node's name before the @."""
        return self.node.partition("@")[0]

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.started)

    def trouble(self, now: float | None = None) -> str | None:
        """What is wrong with the process itself, in words; None if it lives and turns."""
        now = time.monotonic() if now is None else now
        if not self.identity.alive():
            return f"pid {self.pid} is gone"
        if now - self.at > SILENT:
            return f"no sign of life for {now - self.at:.0f} s"
        if self.connected and self.stands_still:
            return f"its loop has not turned for {now - self.turned:.0f} s"
        return None

    @property
    def stands_still(self) -> bool:
        """Whether its loop did not turn, with no task to blame for it."""
        return self.at - self.turned > SILENT and not (self.alone and self.active)


def heartbeat_path(directory: Path, node: str, suffix: str = ".json") -> Path:
    """Where the heartbeat of a node is, or another file of its."""
    return directory / DIRECTORY / f"{quote(node, safe='@')}{suffix}"


class HeartbeatFile:
    """The file of one process's heartbeat, written over in place each time: to make a new one and
    rename it costs an idle worker more than all else it does."""

    def __init__(self, directory: Path, node: str) -> None:
        self.path = heartbeat_path(directory, node)
        self._handle = -1
        self._size = 0
        # Again by the same thread, too: a signal may end a worker in the midst of it.
        self._lock = threading.RLock()

    def write(self, heartbeat: Heartbeat) -> None:
        """Put it there. Raises OSError."""
        with self._lock:
            self._write(heartbeat)

    def _write(self, heartbeat: Heartbeat) -> None:
        if self._handle >= 0 and not os.fstat(self._handle).st_nlink:  # somebody removed it
            self._close()
        if self._handle < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._handle = os.open(self.path, flags, 0o600)
        text = _signed({name: getattr(heartbeat, name) for name in _FIELDS})
        self._size = max(self._size, len(text))
        os.pwrite(self._handle, text.ljust(self._size), 0)

    def remove(self) -> None:
        """There is no heartbeat any more."""
        with self._lock, contextlib.suppress(OSError):
            self._close()
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._size = -1, 0


_FIELDS = tuple(field.name for field in fields(Heartbeat))


def _signed(raw: dict[str, Any]) -> bytes:
    """As JSON, with a sum by which a reader sees that it was not being written over."""
    text = json.dumps(raw)
    return f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}\n'.encode()


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The heartbeat in a file; None if there is none, it is unreadable, or of an earlier boot."""
    for _ in range(_READS):
        try:
            text = path.read_bytes()
            raw = json.loads(text)
            del raw["crc"]
            if _signed(raw) != text.rstrip() + b"\n":
                continue
            heartbeat = Heartbeat(**{**raw, "queues": tuple(raw["queues"])})
        except OSError:
            return None
        except (ValueError, KeyError, TypeError):
            continue
        return heartbeat if heartbeat.boot == table.boot_id() else None
    return None


#: Reads of a file that is written over meanwhile, which takes microseconds once a second.
_READS = 5


def heartbeats(directory: Path) -> Iterator[Heartbeat]:
    """All of a run directory, those of ended workers too that had no time to clear theirs."""
    for path in sorted((directory / DIRECTORY).glob("*.json")):
        heartbeat = read_heartbeat(path)
        if heartbeat is not None:
            yield heartbeat


def liveness(
    directory: Path, name: str | None = None, *, ready: bool = False
) -> tuple[Health, ...]:
    """A verdict on each process here that has a heartbeat, or on the one of that ``name``.

    ``ready``: connected to the broker too. Asks neither the processes nor the broker.
    """
    found = [
        heartbeat
        for heartbeat in heartbeats(directory)
        if name in (None, heartbeat.name, heartbeat.node)
    ]
    return tuple(_verdicts(found, directory, name, ready))


def _verdicts(
    found: list[Heartbeat], directory: Path, name: str | None, ready: bool
) -> Iterator[Health]:
    if not found:
        who = f"no worker {name}" if name else "no worker and no scheduler"
        yield Health("heartbeat", False, f"{who} has a heartbeat in {directory}")
    for heartbeat in found:
        trouble = heartbeat.trouble()
        if trouble is None and ready and not heartbeat.connected:
            trouble = "it has no connection to the broker"
        yield Health(label(heartbeat), trouble is None, trouble or doing(heartbeat))


def label(heartbeat: Heartbeat) -> str:
    return heartbeat.name if heartbeat.pool == "beat" else f"worker {heartbeat.name}"


def doing(heartbeat: Heartbeat) -> str:
    """What it does, in words."""
    if heartbeat.pool == "beat":
        return f"its loop turns (pid {heartbeat.pid})"
    if not heartbeat.connected:
        return "waits for the broker"
    queues = ", ".join(heartbeat.queues)
    return f"{heartbeat.active} of {heartbeat.slots} slots busy, consumes {queues}"
