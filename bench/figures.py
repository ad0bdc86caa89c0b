"""The arithmetic of the benchmarks: medians, ratios, percentiles, INFO's numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

Figures = dict[str, float]

# What the harness itself sends while it measures.
_OURS = frozenset({"info", "ping", "config|resetstat", "config"})


def medians(rounds: Sequence[Mapping[str, float]]) -> Figures:
    """The median of each figure over the rounds that have it."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {
        name: statistics.median(figures[name] for figures in rounds if name in figures)
        for name in names
    }


def ratio(value: float | None, baseline: float | None, *, higher_is_better: bool) -> float | None:
    """How many times better than the baseline; None when there is nothing to compare."""
    if not value or not baseline:
        return None
    return value / baseline if higher_is_better else baseline / value


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest-rank percentile: the smallest value that ``share`` (0…1] of them do not exceed.

    Raises ValueError when there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile of no values")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def commands(commandstats: Mapping[str, Mapping[str, float]]) -> float:
    """Commands executed, from redis-py's ``INFO commandstats``, without the harness's own.

    The server counts the commands inside a script or a transaction as well as the script itself.
    """
    return sum(
        stat["calls"]
        for name, stat in commandstats.items()
        if name.removeprefix("cmdstat_").lower() not in _OURS
    )
