"""Workers that were deaf and started anew a short time ago, for those who look afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.process.events import events_version, record, recorded

_KIND = "deaf-worker"
#: Seconds for which such a restart is worth a word.
REMEMBERED = 600.0


@dataclass(frozen=True, slots=True)
class DeafWorker:
    """The last such restart of a worker. ``at`` is Unix time."""

    node: str
    why: str
    at: float

    @property
    def name(self) -> str:
        """The node's first part, which is the process's name."""
        return self.node.partition("@")[0]

    def told(self, now: float) -> str:
        """In words, to follow a name."""
        return f"deaf ({self.why}) and started anew {max(0, now - self.at):.0f} s ago"


def record_deaf(directory: Path, node: str, why: str, **fields: Any) -> None:
    """Remember it, with whatever may help to find out. Raises OSError."""
    record(directory, _KIND, worker=node, why=why, **fields)


class DeafWorkers:
    """Those of a run directory; its file is read again only when it has changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._version: object = None
        self._known: tuple[DeafWorker, ...] = ()

    def lately(self, now: float) -> dict[str, DeafWorker]:
        """By name, those of the last ``REMEMBERED`` seconds before ``now`` (Unix time)."""
        since = now - REMEMBERED
        version = events_version(self._directory)
        if version != self._version:
            self._version = version
            self._known = tuple(
                DeafWorker(str(event["worker"]), str(event["why"]), float(event["at"]))
                for event in recorded(self._directory, since=since)
                if event.get("kind") == _KIND
            )
        return {one.name: one for one in self._known if one.at >= since}
