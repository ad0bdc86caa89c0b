"""Acknowledgements waiting to be sent: many in one HDEL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import redis

from cloche.broker.commands import send

#: At most so many fields in one command.
BATCH = 1000


class Acks:
    """Fields of the in-flight hash to delete. Any thread may add; one at a time flushes.

    Bounded by what a consumer may hold: nothing new is fetched while these cannot be sent.
    """

    def __init__(self) -> None:
        self._fields: list[str] = []
        self._oldest = 0.0
        self._doubtful = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, field: object) -> bool:
        return field in self._fields

    @property
    def age(self) -> float:
        """Seconds the oldest has waited; 0 when there is none."""
        return time.monotonic() - self._oldest if self._fields else 0.0

    def add(self, field: str) -> None:
        """One more."""
        with self._lock:
            if not self._fields:
                self._oldest = time.monotonic()
            self._fields.append(field)

    def take(self, limit: int = BATCH) -> list[str]:
        """Up to ``limit`` of them, oldest first; whoever takes must send or put back."""
        with self._lock:
            taken, self._fields = self._fields[:limit], self._fields[limit:]
            return taken

    def put_back(self, fields: Iterable[str]) -> None:
        """It is not known whether they arrived. Deleting a field twice does no harm."""
        with self._lock:
            self._fields[:0] = fields
            self._doubtful = True

    def missing(self, sent: int, settled: int) -> int:
        """How many of ``sent`` acknowledgements came too late, given that ``settled`` did not."""
        doubtful, self._doubtful = self._doubtful, False
        return 0 if doubtful else sent - settled

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._fields.clear()

    def flush(self, client: redis.Redis, key: str) -> int:
        """Send all; how many came too late. Raises what redis-py raises: nothing is lost then."""
        late = 0
        while fields := self.take():
            try:
                settled = int(send(client, "HDEL", key, *fields))
            except BaseException:
                self.put_back(fields)
                raise
            late += self.missing(len(fields), settled)
        return late
