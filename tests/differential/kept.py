"""Programs that once showed a difference, each a file: replayed before anything new is tried."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.differential.programs import Program

DIRECTORY = Path(__file__).parent / "kept"


def read(path: Path) -> dict[str, Any]:
    """``program``, ``found`` (in words), ``pools`` (absent: all)."""
    text: dict[str, Any] = json.loads(path.read_text())
    return text


def kept_for(pool: str) -> list[Program]:
    """The kept programs that the pool can run."""
    kept = (read(path) for path in sorted(DIRECTORY.glob("*.json")))
    return [one["program"] for one in kept if pool in one.get("pools", (pool,))]


def keep(program: Program, found: str, pools: list[str] | None = None) -> Path:
    """Write a program to the folder, named by what it shows."""
    DIRECTORY.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", found.lower()).strip("-")[:60]
    path = DIRECTORY / f"{name}.json"
    content = {"found": found, "program": program, **({"pools": pools} if pools else {})}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
