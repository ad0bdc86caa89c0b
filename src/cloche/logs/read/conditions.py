"""A `LogFilter` as SQL: conditions that the indexes of ``cloche_log_records`` were chosen for.

Times become ranges of ids: an id is a UUIDv7, whose first 48 bits are its milliseconds (RFC 9562
§5.7). So one index answers for time and order, and PostgreSQL skips the days outside.
"""

from __future__ import annotations

import re
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
)

from cloche.logs.context import WITHIN
from cloche.logs.read.filter import LogFilter
from cloche.logs.record import END_OF_TIME, LEVELS
from cloche.logs.table import log_records
from cloche.plain import search_words
from cloche.timestamps import first_id, moment

columns = log_records.c
#: PostgreSQL's text search without a language: words as they are, in lower case.
_SIMPLE: ColumnElement[str] = literal_column("'simple'")
#: A text in quotes, or a word.
_PARTS = re.compile(r'"([^"]*)"?|(\S+)')


def moment_of(id: UUID) -> datetime:
    """The millisecond in which a UUIDv7 was made; of any other, at most the end of the calendar."""
    return moment(min((id.int >> 80) * 1000, END_OF_TIME))


def conditions(
    wanted: LogFilter, dialect: str, now: datetime | None = None
) -> list[ColumnElement[bool]]:
    """What a row must fulfil, in the SQL of ``dialect``: ``sqlite`` or ``postgresql``."""
    since, until = wanted.window(now)
    equal = (
        (columns.run_id, wanted.run),
        (columns.task_id, wanted.task),
        (columns.concept_id, wanted.concept),
        (columns.category, wanted.category),
        (columns.agent, wanted.agent),
    )
    found = [column == value for column, value in equal if value is not None]
    if since is not None:
        found.append(columns.id >= first_id(since))
    if until is not None:
        found.append(columns.id < first_id(until))
    if wanted.level is not None:
        found.append(at_least(wanted.level))
    if wanted.step is not None:
        inside = columns.step.startswith(wanted.step + WITHIN, autoescape=True)
        found.append(or_(columns.step == wanted.step, inside))
    if wanted.text is not None:
        found += _says(wanted.text, dialect)
    return found


def at_least(level: str) -> ColumnElement[bool]:
    """Of this level or worse. The number stands in the statement itself: errors have an index
    of their own, and PostgreSQL takes it only for a level it can see."""
    return columns.level >= literal(LEVELS[level], literal_execute=True)


def _says(wanted: str, dialect: str) -> list[ColumnElement[bool]]:
    """All words of ``wanted``, and its quoted parts as they stand, are in the message."""
    found = (quoted or word for quoted, word in _PARTS.findall(wanted))
    parts = [search_words(part) for part in found if part]
    if not parts:
        return []
    if dialect == "sqlite":
        # A quoted string is a phrase to FTS5, whatever is in it; several all have to be there.
        query = " ".join(f'"{part}"' for part in parts)
        index = table("cloche_log_records_text", column("rowid"), column("cloche_log_records_text"))
        matches = index.c.cloche_log_records_text.bool_op("MATCH")(query)
        return [literal_column("seq").in_(select(index.c.rowid).where(matches))]
    vector = func.to_tsvector(_SIMPLE, func.cloche_words(columns.message))
    return [vector.bool_op("@@")(func.phraseto_tsquery(_SIMPLE, part)) for part in parts]
