"""Pages by key: the next one begins where the last one ended, whatever was added meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeysetPage(Generic[T, K]):
    """Records, newest first. ``older`` and ``newer`` are the keys to go on from, before and after;
    None where there is nothing more."""

    records: tuple[T, ...]
    older: K | None
    newer: K | None


def keyset_page(
    query: Select[Any],
    column: ColumnElement[K],
    read: Callable[[Select[Any]], Sequence[T]],
    key: Callable[[T], K],
    *,
    limit: int,
    before: K | None = None,
    after: K | None = None,
) -> KeysetPage[T, K]:
    """The newest rows of ``query`` before the key ``before``, or the next ones after ``after``.

    ``column`` is the key in the database, ``key`` that of a row as ``read`` gives it.
    """
    query = query.limit(limit + 1)
    if after is not None:
        found = read(query.where(column > after).order_by(column))
        shown = list(found[:limit])[::-1]
        return KeysetPage(
            tuple(shown), after, key(shown[0]) if shown and len(found) > limit else None
        )
    if before is not None:
        query = query.where(column < before)
    found = read(query.order_by(column.desc()))
    shown = list(found[:limit])
    older = key(shown[-1]) if len(found) > limit else None
    return KeysetPage(tuple(shown), older, key(shown[0]) if shown and before is not None else None)
