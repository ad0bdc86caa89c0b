"""The state file: who runs here and how it is stopped, for whoever must do so later.

Written before and after every spawn, so a process is always either in it or found by the
instance in its environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloche.process import table
from cloche.process.identity import Identity
from cloche.process.spec import StopSignal


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """One process as the state file keeps it. ``identity`` is None while it does not run.

    ``death_signal`` is what the kernel sends it at the launcher's death, None if nothing.
    Its group has the main process's pid as number.
    """

    name: str
    command: Sequence[str]
    stop_order: int
    stop_signals: tuple[StopSignal, ...]
    death_signal: int | None = None
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run: its instance, its launcher, its children. ``since`` is Unix time."""

    instance: str
    launcher: Identity
    since: float
    children: tuple[ChildRecord, ...] = ()
    boot: str = ""

    def longest_stop(self) -> float:
        """Seconds that a stop of all may take, until the last one is killed."""
        waits: dict[int, float] = {}
        for child in self.children:
            wait = sum(seconds for _, seconds in child.stop_signals)
            waits[child.stop_order] = max(wait, waits.get(child.stop_order, 0.0))
        return sum(waits.values())

    def write(self, path: Path) -> None:
        """Replace the file at once: a reader sees the old or the new state, never half."""
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)))
        os.replace(draft, path)

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """The recorded run; None if there is none, it is damaged, or of an earlier boot."""
        try:
            raw = json.loads(path.read_text())
            record = cls(
                instance=raw["instance"],
                launcher=Identity(**raw["launcher"]),
                since=raw["since"],
                children=tuple(_child(child) for child in raw["children"]),
                boot=raw["boot"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if record.boot == table.boot_id() else None


def _child(raw: dict[str, Any]) -> ChildRecord:
    identity = raw["identity"]
    return ChildRecord(
        name=raw["name"],
        command=tuple(raw["command"]),
        stop_order=raw["stop_order"],
        stop_signals=tuple((number, wait) for number, wait in raw["stop_signals"]),
        death_signal=raw["death_signal"],
        identity=None if identity is None else Identity(**identity),
    )
