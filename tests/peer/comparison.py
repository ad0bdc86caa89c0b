"""Two results of one test, side by side."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.peer.results import Configuration, Result, Results


class Verdict(enum.StrEnum):
    """Where a test passes."""

    BOTH = "passes on both"
    OURS_ONLY = "passes on ours only"
    NEITHER = "passes on neither"
    WANTED = "differs on purpose"
    STOCK_ONLY = "passes on stock only"


@dataclass(frozen=True, slots=True)
class Pair:
    """A test with its result on stock ``redis://`` and on ours.

    ``wanted``: why it may pass on stock only.
    """

    test: str
    stock: Result
    ours: Result
    wanted: str | None = None

    @property
    def verdict(self) -> Verdict:
        if self.stock.passed:
            if self.ours.passed:
                return Verdict.BOTH
            return Verdict.WANTED if self.wanted else Verdict.STOCK_ONLY
        return Verdict.OURS_ONLY if self.ours.passed else Verdict.NEITHER


def compare(results: Results, pool: str, wanted: Mapping[str, str]) -> list[Pair]:
    """The tests that ran on both URLs, by name; ``wanted``: reason by the start of a name."""

    def reason(test: str) -> str | None:
        return next((why for start, why in wanted.items() if test.startswith(start)), None)

    stock = results.of(Configuration(pool, "stock"))
    ours = results.of(Configuration(pool, "ours"))
    return [
        Pair(test, stock[test], ours[test], reason(test)) for test in sorted(stock) if test in ours
    ]


def by_verdict(pairs: list[Pair]) -> Mapping[Verdict, list[Pair]]:
    """All verdicts, those without a test too."""
    return {verdict: list(_with(pairs, verdict)) for verdict in Verdict}


def _with(pairs: list[Pair], verdict: Verdict) -> Iterator[Pair]:
    return (pair for pair in pairs if pair.verdict is verdict)
