"""Old rows leave in small bites, so that others can write between two of them."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import ColumnElement, FromClause, Table, delete, func, select

from cloche.database.engine import Database

#: Rows deleted in a transaction.
BATCH = 5000


def delete_older(
    database: Database,
    rows: FromClause,
    age: ColumnElement[Any],
    before: object,
    *,
    dry_run: bool = False,
) -> int:
    """Delete where ``age`` is less than ``before``, in bites; how many there were.

    ``rows`` has a key ``id``. ``dry_run`` counts only. Raises DatabaseError.
    """
    old = age < before
    if dry_run:
        with database.read() as connection:
            return connection.scalar(select(func.count()).select_from(rows).where(old)) or 0
    bite = select(rows.c.id).where(old).order_by(age).limit(BATCH).scalar_subquery()
    statement = delete(cast(Table, rows)).where(rows.c.id.in_(bite))
    total = 0
    while True:
        with database.write() as connection:
            gone = connection.execute(statement).rowcount
        total += gone
        if gone < BATCH:
            return total
