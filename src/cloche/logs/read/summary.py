"""Figures of many records: how many of what, and how long each step takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select
from sqlalchemy.sql.selectable import Subquery

from cloche.logs.read.conditions import columns
from cloche.logs.record import LEVEL_NAMES


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Durations of one step, milliseconds; percentiles are durations that occurred."""

    step: str
    count: int
    errors: int
    p50: float
    p95: float
    slowest: float
    total: float


@dataclass(frozen=True, slots=True)
class Summary:
    """``since`` and ``until`` bound it; None: no bound. Counts are by name, most first."""

    since: datetime | None
    until: datetime | None
    total: int
    levels: dict[str, int]
    categories: dict[str, int]
    agents: dict[str, int]
    steps: tuple[StepFigures, ...]


def summarise(
    connection: Connection,
    wanted: Sequence[ColumnElement[bool]],
    since: datetime | None,
    until: datetime | None,
) -> Summary:
    """The summary of the rows that fulfil ``wanted``: two passes over them in the database."""
    levels, categories, agents = Counter[str](), Counter[str](), Counter[str]()
    for level, category, agent, count in connection.execute(_counts(wanted)):
        levels[LEVEL_NAMES[level]] += count
        categories[category] += count
        if agent is not None:
            agents[agent] += count
    return Summary(
        since=since,
        until=until,
        total=levels.total(),
        levels=dict(levels.most_common()),
        categories=dict(categories.most_common()),
        agents=dict(agents.most_common()),
        steps=tuple(StepFigures(*row) for row in connection.execute(_steps(wanted))),
    )


def _counts(wanted: Sequence[ColumnElement[bool]]) -> Select[Any]:
    grouped = (columns.level, columns.category, columns.agent)
    return select(*grouped, func.count()).where(*wanted).group_by(*grouped)


def _steps(
    wanted: Sequence[ColumnElement[bool]],
) -> Select[Any]:
    """Nearest-rank percentiles by numbering the rows of a step: SQLite has no percentile_disc."""
    ranked = _ranked(wanted)
    at = ranked.c
    return (
        select(
            at.step,
            func.max(at.n),
            func.sum(at.bad),
            func.max(case((at.rank <= _nearest(at.n, 50), at.duration_ms))),
            func.max(case((at.rank <= _nearest(at.n, 95), at.duration_ms))),
            func.max(at.duration_ms),
            func.sum(at.duration_ms),
        )
        .group_by(at.step)
        .order_by(func.sum(at.duration_ms).desc(), at.step)
    )


def _ranked(wanted: Sequence[ColumnElement[bool]]) -> Subquery:
    timed = and_(columns.step.is_not(None), columns.duration_ms.is_not(None), *wanted)
    return (
        select(
            columns.step,
            columns.duration_ms,
            case((columns.level >= 40, 1), else_=0).label("bad"),
            func.row_number()
            .over(partition_by=columns.step, order_by=columns.duration_ms)
            .label("rank"),
            func.count().over(partition_by=columns.step).label("n"),
        )
        .where(timed)
        .subquery()
    )


def _nearest(count: ColumnElement[int], percent: int) -> ColumnElement[int]:
    """The rank of the percentile: ``ceil(count * percent / 100)``, in whole numbers."""
    return (count * percent + 99) // 100
