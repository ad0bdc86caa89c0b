"""A broker and workers for each row; the table of what was measured at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cloche.testing import BrokerProcess
from tests.chaos.measure import Cost, Measured, judge
from tests.integration.transport.harness import Bench

_FOUND: list[Measured] = []
_COSTS: list[Cost] = []

Report = Callable[[Measured], None]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with (
        BrokerProcess(persistent=True) as broker,
        Bench(broker, "cloche+redis", tmp_path) as found,
    ):
        yield found


@pytest.fixture
def report() -> Report:
    """Note a measured row for the table, then compare it with the matrix."""

    def note(measured: Measured) -> None:
        _FOUND.append(measured)
        judge(measured)

    return note


@pytest.fixture
def costs() -> Callable[[Cost], None]:
    """Note what a fault cost on another transport, for the second table."""
    return _COSTS.append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _COSTS:
        terminalreporter.section("faults on stock redis://: measured")
        for line in table_of_costs(_COSTS):
            terminalreporter.write_line(line)
    if not _FOUND:
        return
    found = sorted(_FOUND, key=lambda one: (one.row, one.fault))
    if config.cache is not None:
        path = config.cache.mkdir("chaos") / "matrix.json"
        path.write_text(json.dumps([asdict(one) for one in found], indent=2))
    terminalreporter.section("fault matrix: measured (allowed)")
    for line in table(found):
        terminalreporter.write_line(line)


def table(found: list[Measured]) -> list[str]:
    """Markdown lines."""
    lines = ["| # | fault | tasks | L | D | R, s | N |", "|---|---|---|---|---|---|---|"]
    for one in found:
        allowed = one.allowed
        late = f" + {one.late} late" if one.late else ""
        seconds = f"{one.seconds:.1f} ({allowed.seconds:g})"
        duplicates = f"{one.duplicates}{late} ({allowed.duplicates})"
        lines.append(
            f"| {one.row} | {one.fault} | {one.tasks} | {one.lost} | {duplicates} "
            f"| {seconds} | {one.lines} ({allowed.lines}) |"
        )
    return lines


def table_of_costs(costs: list[Cost]) -> list[str]:
    """Markdown lines."""
    lines = ["| fault | tasks | gone | held | repeats |", "|---|---|---|---|---|"]
    for one in costs:
        words = (one.fault, one.tasks, one.gone, one.held, one.repeats)
        lines.append(f"| {' | '.join(map(str, words))} |")
    return lines
