"""The comparison as Markdown: all of it for the terminal's reader, a summary for the docs."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.peer.comparison import Pair, Verdict, by_verdict
from tests.peer.notes import WHY
from tests.peer.results import Result
from tests.peer.source import VERSION

BEGIN = "<!-- peer-suite: what follows is written by `make peer-suite` -->"
END = "<!-- peer-suite: end -->"

Pools = Mapping[str, list[Pair]]


def table(pools: Pools) -> str:
    """A line per pool and test."""
    lines = ["| pool | test | stock | ours | verdict |", "|---|---|---|---|---|"]
    lines += (
        f"| {pool} | `{_short(pair.test)}` | {_cell(pair.stock)} | {_cell(pair.ours)} "
        f"| {pair.verdict} |"
        for pool, pairs in pools.items()
        for pair in pairs
    )
    return "\n".join(lines) + "\n"


def counts(pools: Pools) -> str:
    """A line per pool: how many tests have which verdict."""
    lines = [
        f"| pool | tests | {' | '.join(Verdict)} |",
        "|---|" + "---:|" * (1 + len(Verdict)),
    ]
    for pool, pairs in pools.items():
        numbers = (str(len(found)) for found in by_verdict(pairs).values())
        lines.append(f"| {pool} | {len(pairs)} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def write(document: Path, pools: Pools) -> None:
    """Replace the generated part of docs/compatibility.md."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{_summary(pools)}\n{END}{after}")


def _summary(pools: Pools) -> str:
    revisions = sorted({r.revision for p in pools.values() for i in p for r in (i.stock, i.ours)})
    parts = [
        f"Celery {VERSION}'s suite, Python {platform.python_version()}, "
        f"Cloche at {', '.join(revisions)}:\n",
        counts(pools),
    ]
    for verdict in (Verdict.STOCK_ONLY, Verdict.OURS_ONLY, Verdict.NEITHER):
        parts += _section(verdict, pools)
    return "\n".join(parts)


def _section(verdict: Verdict, pools: Pools) -> Iterator[str]:
    listed: dict[tuple[str, str], list[str]] = {}
    for pool, pairs in pools.items():
        for pair in by_verdict(pairs)[verdict]:
            listed.setdefault((pair.test, _reason(pair)), []).append(pool)
    if listed:
        yield f"### {str(verdict).capitalize()}\n"
        yield _bullets(
            f"`{_short(test)}` ({', '.join(on)}): {reason}" for (test, reason), on in listed.items()
        )


def _reason(pair: Pair) -> str:
    if note := WHY.get(pair.test):
        return note
    failing = pair.ours if pair.stock.passed else pair.stock
    return f"{failing.outcome}: {failing.reason}".replace("<", "&lt;").rstrip(": ")


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _cell(result: Result) -> str:
    reruns = f", {result.reruns} reruns" if result.reruns else ""
    return f"{result.outcome} ({result.seconds:.1f} s{reruns})"


def _short(test: str) -> str:
    return test.removeprefix("t/integration/").replace("|", "\\|")
