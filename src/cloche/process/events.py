"""What happened in a run directory, one JSON line each: restarts of workers that hung."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_FILE = "events.jsonl"

#: Bytes after which the file is begun anew, the older half kept beside it.
_MAX_BYTES = 4 * 1024**2

_KIND = "hung-worker"
#: What earlier versions wrote.
_EARLIER_KIND = "deaf-worker"

#: Seconds for which such a restart is worth a word.
REMEMBERED = 600.0


def record(directory: Path, kind: str, **fields: Any) -> None:
    """Remember it. ``at`` (Unix seconds) and ``kind`` are added. Raises OSError."""
    path = directory / _FILE
    if path.exists() and path.stat().st_size > _MAX_BYTES:
        os.replace(path, path.with_suffix(".jsonl.1"))
    line = json.dumps({"at": round(time.time(), 3), "kind": kind, **fields}, ensure_ascii=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def events_version(directory: Path) -> tuple[int, int] | None:
    """Another value whenever something more was remembered; None: nothing ever was."""
    try:
        found = (directory / _FILE).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def recorded(directory: Path, *, since: float = 0.0) -> list[dict[str, Any]]:
    """What was remembered since ``since`` (Unix seconds), the oldest first."""
    try:
        lines = (directory / _FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # its writer died over it
        if isinstance(event, dict) and event.get("at", 0) >= since:
            found.append(event)
    return found


@dataclass(frozen=True, slots=True)
class RestartedWorker:
    """The last such restart of a worker. ``at`` is Unix time."""

    node: str
    why: str
    at: float

    @property
    def name(self) -> str:
        """The node's first part, which is the process's name."""
        return self.node.partition("@")[0]

    def told(self) -> str:
        """In words, to follow a name."""
        at = datetime.fromtimestamp(self.at, UTC)
        return f"it hung ({self.why}) and was restarted at {at:%H:%M:%S} UTC"


def record_hung(directory: Path, node: str, why: str, **fields: Any) -> None:
    """Remember it, with whatever may help to find out. Raises OSError."""
    record(directory, _KIND, worker=node, why=why, **fields)


class RestartedWorkers:
    """Those of a run directory; its file is read again only when it has changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._version: object = None
        self._known: tuple[RestartedWorker, ...] = ()

    def lately(self, now: float) -> dict[str, RestartedWorker]:
        """By name, those of the last ``REMEMBERED`` seconds before ``now`` (Unix time)."""
        since = now - REMEMBERED
        version = events_version(self._directory)
        if version != self._version:
            self._version = version
            self._known = tuple(
                RestartedWorker(str(event["worker"]), str(event["why"]), float(event["at"]))
                for event in recorded(self._directory, since=since)
                if event.get("kind") in (_KIND, _EARLIER_KIND)
            )
        return {one.name: one for one in self._known if one.at >= since}
