"""Batches of lines into the database: each record one row, whatever is repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from cloche.database import Database
from cloche.database.bulk import Bulk, Refusal
from cloche.database.partitions import DayPartitions
from cloche.logs.codec import Dead, RecordRow, dead, decode
from cloche.logs.table import RECORDS, log_dead_letters
from cloche.logs.write.rows import PostgresqlRows, SqliteRows
from cloche.settings import Settings
from cloche.timestamps import moment

#: µs in a day.
_DAY = 86_400_000_000

#: A line and the row it is.
_Pair = tuple[bytes, RecordRow]


@dataclass(slots=True)
class Written:
    """What became of lines: new rows, records that were there already, dead letters."""

    rows: int = 0
    repeated: int = 0
    dead: int = 0


class Writer:
    """Writes for one thread at a time, on connections of its own; opens at first use."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(settings)
        sqlite_ = self._database.url.get_backend_name() == "sqlite"
        self._rows: Bulk[RecordRow] = SqliteRows() if sqlite_ else PostgresqlRows(self._database)
        self._partitions = None if sqlite_ else DayPartitions(self._database, RECORDS)
        self._insert: Callable[..., Any] = sqlite.insert if sqlite_ else postgresql.insert
        self._migrated = False

    def write(self, lines: Sequence[bytes], *, careful: bool = False) -> Written:
        """Store every line as a record or as a dead letter; committed when it returns.

        ``careful``: some of them may be stored already, which is found out in any case, but
        then at the cost of a second attempt. Raises DatabaseError, and then nothing or a part
        is stored: write the same lines again.
        """
        if not self._migrated:
            self._database.migrate()
            self._migrated = True
        pairs: list[_Pair] = []
        letters: list[Dead] = []
        for line in lines:
            found = decode(line)
            pairs.append((line, found)) if isinstance(found, RecordRow) else letters.append(found)
        if self._partitions is not None:
            days = {row.time // _DAY for _, row in pairs}
            self._partitions.ensure(moment(day * _DAY).date() for day in days)
        return self._store(pairs, letters, careful)

    def close(self) -> None:
        self._database.close()

    def _store(self, pairs: Sequence[_Pair], letters: Sequence[Dead], careful: bool) -> Written:
        rows = [row for _, row in pairs]
        try:
            with self._database.write() as connection:
                new = self._rows.insert(connection, rows, careful=careful) if rows else 0
                self._bury(connection, letters)
        except Exception as error:
            refusal = self._rows.refusal(error)
            if refusal is Refusal.REPEATED:
                return self._store(pairs, letters, True)
            if refusal is Refusal.UNFIT:
                return self._bisect(pairs, letters, str(error))
            raise
        return Written(new, len(rows) - new, len(letters))

    def _bisect(self, pairs: Sequence[_Pair], letters: Sequence[Dead], reason: str) -> Written:
        """Find the rows that the database refuses although they looked well."""
        if len(pairs) == 1:
            return self._store([], [*letters, dead(pairs[0][0], " ".join(reason.split()))], True)
        middle = len(pairs) // 2
        first = self._store(pairs[:middle], letters, True)
        second = self._store(pairs[middle:], [], True)
        return Written(
            first.rows + second.rows, first.repeated + second.repeated, first.dead + second.dead
        )

    def _bury(self, connection: Connection, letters: Sequence[Dead]) -> None:
        if not letters:
            return
        received = moment(time.time_ns() // 1000)
        values = [
            {"id": one.id, "received": received, "reason": one.reason, "payload": one.payload}
            for one in letters
        ]
        connection.execute(self._insert(log_dead_letters).on_conflict_do_nothing(), values)
