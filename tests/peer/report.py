"""The comparison as Markdown: all of it for the terminal's reader, a summary for the docs."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.peer.comparison import Pair, Verdict, by_verdict
from tests.peer.notes import WHY
from tests.peer.results import Result
from tests.peer.suites import SUITES

BEGIN = "<!-- peer-suite: what follows is written by `make peer-suite` -->"
END = "<!-- peer-suite: end -->"

#: Where a file lies on the machine that ran the suite; its name stays.
_DIRECTORIES = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/)+")

#: Pairs by pool.
Pools = dict[str, list[Pair]]
#: Pools by the name of a suite.
Found = dict[str, Pools]


def table(found: Found) -> str:
    """A line per suite, pool and test."""
    lines = ["| suite | pool | test | stock | ours | verdict |", "|---|---|---|---|---|---|"]
    lines += (
        f"| {name} | {pool} | `{short(pair.test)}` | {_cell(pair.stock)} | {_cell(pair.ours)} "
        f"| {pair.verdict} |"
        for name, pools in found.items()
        for pool, pairs in pools.items()
        for pair in pairs
    )
    return "\n".join(lines) + "\n"


def counts(found: Found) -> str:
    """A line per suite and pool: how many tests have which verdict."""
    lines = [
        f"| suite | pool | tests | {' | '.join(Verdict)} |",
        "|---|---|" + "---:|" * (1 + len(Verdict)),
    ]
    for name, pools in found.items():
        for pool, pairs in pools.items():
            numbers = (str(len(some)) for some in by_verdict(pairs).values())
            lines.append(f"| {name} | {pool} | {len(pairs)} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def write(document: Path, found: Found) -> None:
    """Replace the generated part of docs/compatibility.md."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{_summary(found)}\n{END}{after}")


def short(test: str) -> str:
    """A test's name without the directories all of a suite's tests are in."""
    for folder in ("t/integration/", "t/unit/", "tests/integrations/celery/", "tests/"):
        test = test.removeprefix(folder)
    return test.replace("|", "\\|")


def _summary(found: Found) -> str:
    versions = (f"{s.project} {s.version}" for s in SUITES if s.name in found)
    parts = [f"Python {platform.python_version()}; {', '.join(versions)}:\n", counts(found)]
    for name, pools in found.items():
        revisions = {r.revision for p in pools.values() for i in p for r in (i.stock, i.ours)}
        parts.append(f"### {name}\n\nCloche at {', '.join(sorted(revisions))}.\n")
        for verdict in (Verdict.STOCK_ONLY, Verdict.WANTED, Verdict.OURS_ONLY, Verdict.NEITHER):
            parts += _section(verdict, pools)
    return "\n".join(parts)


def _section(verdict: Verdict, pools: Pools) -> Iterator[str]:
    listed: dict[tuple[str, str], list[str]] = {}
    for pool, pairs in pools.items():
        for pair in by_verdict(pairs)[verdict]:
            listed.setdefault((pair.test, _reason(pair)), []).append(pool)
    if listed:
        yield f"{str(verdict).capitalize()}:\n"
        yield _bullets(
            f"`{short(test)}` ({', '.join(on)}): {reason}" for (test, reason), on in listed.items()
        )


def _reason(pair: Pair) -> str:
    if note := pair.wanted if pair.verdict is Verdict.WANTED else WHY.get(pair.test):
        return note
    failing = pair.ours if pair.stock.passed else pair.stock
    reason = _DIRECTORIES.sub("", failing.reason)
    return f"{failing.outcome}: {reason}".replace("<", "&lt;").rstrip(": ")


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _cell(result: Result) -> str:
    reruns = f", {result.reruns} reruns" if result.reruns else ""
    return f"{result.outcome} ({result.seconds:.1f} s{reruns})"
