"""The same records for all: what an agent of such a project logs."""

from __future__ import annotations

import os
import uuid
from typing import Any

#: SQLAlchemy URL, as Cloche's settings spell it.
DATABASE = os.environ.get("BENCH_DATABASE", "")
SQLITE = DATABASE.startswith("sqlite")
RUNS = [str(uuid.UUID(int=number)) for number in range(50)]
TASKS = [str(uuid.UUID(int=number << 64)) for number in range(1000)]
WORDS = [
    "planner",
    "agent",
    "started",
    "retrieving",
    "documents",
    "for",
    "the",
    "roadmap",
    "node",
    "calling",
    "the",
    "model",
]


def fields(number: int) -> dict[str, Any]:
    """The fields of record ``number``, as ``log()`` takes them."""
    turn = number % len(WORDS)
    return {
        "level": "error" if number % 20 == 0 else "info",
        "category": "agent",
        "step": WORDS[turn],
        "message": f"{' '.join(WORDS[turn:] + WORDS[:turn])} {number}",
        "task_id": TASKS[number % 1000],
        "run_id": RUNS[number % 50],
        "agent": "planner",
        "details": {"tokens": number, "model": "m-1"},
        "duration_ms": 12.5,
    }
