"""What happened in a run directory that somebody may ask about later: one JSON line each."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

_FILE = "events.jsonl"
#: Bytes after which the file is begun anew, the older half kept beside it.
_MOST = 4 * 1024**2


def record(directory: Path, kind: str, **fields: Any) -> None:
    """Remember it. ``at`` (Unix seconds) and ``kind`` are added. Raises OSError."""
    path = directory / _FILE
    if path.exists() and path.stat().st_size > _MOST:
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
