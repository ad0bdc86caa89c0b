"""What was measured, as tables for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from bench.benchmarks import Benchmark
from bench.contestant import Setting
from bench.figures import Figures, medians, ratio
from bench.run import Run

_SETTINGS: dict[Setting, str] = {
    "ignored": "results ignored",
    "stored": "results stored",
    "production": "results stored, late acks, events on",
}


@dataclass(frozen=True)
class Summary:
    """All rounds of one contestant in one benchmark and setting."""

    benchmark: str
    setting: Setting
    contestant: str
    rounds: int
    jobs: int
    figures: Figures  # medians
    ratio: float | None  # times better than the baseline
    failure: str
    skipped: str


def summarise(benchmark: Benchmark, runs: Sequence[Run]) -> list[Summary]:
    """Medians and ratios, in the order in which they ran."""
    groups: dict[tuple[Setting, str], list[Run]] = {}
    for run in runs:
        if run.benchmark == benchmark.name:
            groups.setdefault((run.setting, run.contestant), []).append(run)
    figures = {key: medians([run.figures for run in group]) for key, group in groups.items()}
    return [
        Summary(
            benchmark.name,
            setting,
            contestant,
            sum(1 for run in group if run.figures),
            group[0].jobs,
            figures[setting, contestant],
            ratio(
                figures[setting, contestant].get(benchmark.main),
                figures.get((setting, benchmark.baseline), {}).get(benchmark.main),
                higher_is_better=benchmark.higher_is_better,
            ),
            next((run.failure for run in group if run.failure), ""),
            next((run.skipped for run in group if run.skipped), ""),
        )
        for (setting, contestant), group in groups.items()
    ]


def table(benchmark: Benchmark, setting: Setting, summaries: Sequence[Summary]) -> Table:
    """A table of one benchmark in one setting."""
    title = f"{benchmark.name}, {_SETTINGS[setting]}: {benchmark.help}"
    view = Table(title=title, title_justify="left", title_style="bold")
    for heading in _headings(benchmark):
        left = heading == "contestant"
        view.add_column(heading, justify="left" if left else "right", overflow="fold")
    for summary in summaries:
        if summary.setting == setting:
            view.add_row(*_row(benchmark, summary))
    return view


def markdown(benchmark: Benchmark, setting: Setting, summaries: Sequence[Summary]) -> str:
    """The same for a document."""
    headings = _headings(benchmark)
    rows = [headings, ("---", *("--:" for _ in headings[1:]))]
    rows += [_row(benchmark, summary) for summary in summaries if summary.setting == setting]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def outcome(summary: Summary) -> str:
    """Why there are no figures, in a line; empty when there are."""
    if summary.skipped:
        return f"skipped: {summary.skipped}"
    return f"failed: {summary.failure.splitlines()[0]}" if summary.failure else ""


def document(runs: Sequence[Run], summaries: Sequence[Summary], **about: Any) -> dict[str, Any]:
    """Everything, each round's raw figures included, as JSON can hold it."""
    return {
        **about,
        "summaries": [asdict(summary) for summary in summaries],
        "runs": [asdict(run) for run in runs],
    }


def number(value: float | None) -> str:
    """Three significant digits, thousands apart: 6,010 · 42.1 · 0.063."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _headings(benchmark: Benchmark) -> tuple[str, ...]:
    return ("contestant", *benchmark.columns.values(), "× stock", "rounds × jobs")


def _row(benchmark: Benchmark, summary: Summary) -> tuple[str, ...]:
    figures = [number(summary.figures.get(name)) for name in benchmark.columns]
    if not summary.figures:
        figures[0] = outcome(summary).split(":")[0]
    count = f"{summary.rounds} × {summary.jobs:,}"
    return (summary.contestant, *figures, number(summary.ratio), count)
