"""Errors that are alike as one line each, and since when."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from uuid import UUID

from cloche.logs.read.conditions import moment_of

#: What differs from one occurrence to the next, by the name of what stands for it. The first that
#: fits counts: a number inside quotes is part of the text.
_VARYING = re.compile(
    r"""
    (?P<id>    \b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b)
    # Hexadecimal needs a digit among it: "deadbeef" and "defaced" are words.
  | (?P<hex>   \b0x[0-9a-f]+\b | \b(?=[a-f]*\d)[0-9a-f]{8,}\b)
  | (?P<text>  (?<!\w)'[^']*' | "[^"]*")
  | (?P<n>     \d+(?:[.,:]\d+)*)
  | (?P<blank> \s+)
    """,
    re.IGNORECASE | re.VERBOSE,
)

#: Characters of a message that count.
_LONGEST = 300


@lru_cache(maxsize=4096)
def normalised(message: str) -> str:
    """``connection to 10.0.0.7:5432 refused`` -> ``connection to [n] refused``."""
    return _VARYING.sub(_stand_in, message[: 4 * _LONGEST]).strip()[:_LONGEST]


def _stand_in(found: re.Match[str]) -> str:
    return " " if found.lastgroup == "blank" else f"[{found.lastgroup}]"


def fingerprint(category: str, step: str | None, message: str) -> str:
    """Twelve hexadecimal digits, the same for the same kind of error."""
    parts = "\0".join((category, step or "", normalised(message)))
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


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
