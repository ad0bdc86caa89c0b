"""The pulse of a worker: a small file in the run directory, written anew every second.

Whoever asks whether a worker lives need not ask the worker, which may be busy or stopped, nor
the broker, which may be away. Times are monotonic seconds, the same for all processes of a
machine until its next boot.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from cloche.process import table
from cloche.process.identity import Identity

#: Seconds between two beats.
PERIOD = 1.0
#: Seconds without a beat, or without a turn of the loop, after which something is wrong.
SILENT = 5.0
DIRECTORY = "pulse"


@dataclass(frozen=True, slots=True)
class Pulse:
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
        """The worker's main process."""
        return Identity(self.pid, self.started)

    def write(self, directory: Path) -> None:
        """Put it into the run directory. Raises OSError."""
        path = pulse_path(directory, self.node)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)))
        os.replace(draft, path)

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


def pulse_path(directory: Path, node: str, suffix: str = ".json") -> Path:
    """Where the pulse of a node is, or another file of its."""
    return directory / DIRECTORY / f"{quote(node, safe='@')}{suffix}"


def read_pulse(path: Path) -> Pulse | None:
    """The pulse in a file; None if there is none, it is unreadable, or of an earlier boot."""
    try:
        raw = json.loads(path.read_text())
        pulse = Pulse(**{**raw, "queues": tuple(raw["queues"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pulse if pulse.boot == table.boot_id() else None


def pulses(directory: Path) -> Iterator[Pulse]:
    """All of a run directory, those of ended workers too that had no time to clear theirs."""
    for path in sorted((directory / DIRECTORY).glob("*.json")):
        pulse = read_pulse(path)
        if pulse is not None:
            yield pulse
