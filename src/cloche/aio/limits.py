"""Deadlines of jobs: pure bookkeeping, no clock and no thread of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock

from cloche.aio.job import Job

SOFT, HARD, GRACE = "soft", "hard", "grace"


class Deadlines:
    """Which jobs are due. One ordered row per kind and duration.

    Jobs of one duration fall due in the order they began, so adding and removing is O(1)
    however many there are; durations are few.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, float], OrderedDict[Job, float]] = {}
        self._lock = Lock()

    def add(self, job: Job, kind: str, seconds: float, now: float) -> None:
        """``job`` is due in ``seconds`` from ``now``."""
        with self._lock:
            row = self._rows.setdefault((kind, seconds), OrderedDict())
            row[job] = now + seconds
            row.move_to_end(job)

    def discard(self, job: Job) -> None:
        """The job has ended: none of its deadlines counts."""
        with self._lock:
            for kind, seconds in ((SOFT, job.soft), (HARD, job.hard)):
                if seconds and (row := self._rows.get((kind, seconds))):
                    row.pop(job, None)

    def due(self, now: float) -> Iterator[tuple[Job, str, float]]:
        """(job, kind, seconds) of every deadline that has passed; each is told once."""
        with self._lock:
            found = []
            for (kind, seconds), row in list(self._rows.items()):
                while row and (first := next(iter(row.items())))[1] <= now:
                    del row[first[0]]
                    found.append((first[0], kind, seconds))
                if not row:
                    del self._rows[kind, seconds]
        return iter(found)

    def __bool__(self) -> bool:
        return bool(self._rows)
