"""Makes a program that shows a difference as small as it goes, many candidates at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from tests.differential.programs import Program
from tests.differential.run import Bench, Verdict

ROUNDS = 7
WIDTH = 14


def shrink(bench: Bench, found: Verdict, kind: str) -> Verdict:
    """The smallest program met that still shows ``kind`` under the same launcher."""
    best = found
    for _ in range(ROUNDS):
        smaller = sorted(candidates(best.program), key=_size)[:WIDTH]
        shown = [
            verdict
            for verdict in bench.compare(smaller, at_once=WIDTH, launcher=found.launcher)
            if kind in verdict.kinds
        ]
        shown = [one for one in shown if _size(one.program) < _size(best.program)]
        if not shown:
            break
        best = min(shown, key=lambda verdict: _size(verdict.program))
    return best


def _size(program: Program) -> int:
    return len(json.dumps(program))


def candidates(program: Program) -> Iterator[Program]:
    """The program without one of its parts."""
    # What is revoked must not have run by then.
    revokes = any(step["do"] == "revoke" for step in program)
    for path in _paths(program, ()):
        smaller = copy.deepcopy(program)
        at: Any = smaller
        for step in path[:-1]:
            at = at[step]
        value = at[path[-1]]
        if _needed(path, value, at) or (revokes and _waits(path, value)):
            continue
        del at[path[-1]]
        if smaller:
            yield smaller
        if isinstance(at, list) and isinstance(value, dict) and "t" in value and value["t"]:
            for part in value["t"]:
                other = copy.deepcopy(program)
                inner: Any = other
                for step in path[:-1]:
                    inner = inner[step]
                inner[path[-1]] = copy.deepcopy(part)
                yield other
    for path in _paths(program, ()):
        if path[-1] == "task":
            other = copy.deepcopy(program)
            at = other
            for step in path[:-1]:
                at = at[step]
            if at["task"] not in ("bound", "nowhere", "errback", "errback_id"):
                at["task"] = "bound"
                yield other


def _waits(path: tuple[Any, ...], value: Any) -> bool:
    """Whether it makes a task wait until it is revoked."""
    in_script = "s" in path or path[-1] in ("countdown", "o")
    return in_script or (isinstance(value, dict) and value.get("do") == "wait")


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield (*path, index)
            yield from _paths(inner, (*path, index))


def _needed(path: tuple[Any, ...], value: Any, at: Any) -> bool:
    """Whether a program without it would be none."""
    if path[-1] in ("do", "n", "task", "c", "body", "call", "$", "t", "steps"):
        return True
    # A word of a script is whole or gone.
    return (
        isinstance(at, list) and bool(at) and isinstance(at[0], str) and isinstance(path[-1], int)
    )
