"""Errors that are alike as one line each, and since when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cloche.logs.conditions import moment_of
from cloche.logs.fingerprint import fingerprint, normalised


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Errors with the same fingerprint. ``message`` and ``example`` (an id) are the newest."""

    fingerprint: str
    category: str
    step: str | None
    pattern: str
    count: int
    first: datetime
    last: datetime
    message: str
    example: UUID


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """Groups, the latest first. ``complete`` False: only the newest ``total`` errors were read."""

    since: datetime | None
    until: datetime | None
    total: int
    complete: bool
    groups: tuple[ErrorGroup, ...]


@dataclass(slots=True)
class _Seen:
    newest: UUID
    oldest: UUID
    message: str
    count: int = 1


def groups_of(rows: Iterable[tuple[UUID, str, str | None, str]]) -> tuple[ErrorGroup, ...]:
    """The groups of errors (id, category, step, message) that come newest first."""
    seen: dict[tuple[str, str | None, str], _Seen] = {}
    for id, category, step, message in rows:
        key = (category, step, normalised(message))
        known = seen.get(key)
        if known is None:
            seen[key] = _Seen(id, id, message)
        else:
            known.oldest = id
            known.count += 1
    return tuple(
        ErrorGroup(
            fingerprint=fingerprint(category, step, one.message),
            category=category,
            step=step,
            pattern=pattern,
            count=one.count,
            first=moment_of(one.oldest),
            last=moment_of(one.newest),
            message=one.message,
            example=one.newest,
        )
        for (category, step, pattern), one in seen.items()
    )
