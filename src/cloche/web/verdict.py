"""What is wrong now, decided from the snapshot and the live tasks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cloche.history.live import LiveTasks
from cloche.process.deaf import DeafWorker
from cloche.records import Snapshot

#: Seconds after which a worker's work must have shown up as events.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong; ``kind`` picks the words (templates/dashboard/verdict.html).

    ``at`` is the Unix time at which it was noticed, where that matters.
    """

    kind: str
    subject: str = ""
    detail: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``kind``: good, warn or bad. ``waiting``: nothing has been seen yet."""

    kind: str
    troubles: tuple[Trouble, ...]
    workers: int
    waiting: bool = False


class Silence:
    """Finds workers that work and send no events, by comparing their counters over time."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[int, float | None]] = {}

    def silent(self, snapshot: Snapshot, live: LiveTasks) -> tuple[str, ...]:
        """Names of workers whose counter has risen for a while without an event of theirs."""
        if not live.listening:
            return ()
        heard = live.workers()
        return tuple(
            worker.name
            for worker in snapshot.workers
            if worker.name not in heard
            and self._overdue((worker.name, worker.pid), sum(worker.processed.values()))
        )

    def _overdue(self, worker: tuple[str, int], total: int) -> bool:
        now = time.monotonic()
        first, rose = self._first.setdefault(worker, (total, None))
        if total > first and rose is None:
            self._first[worker] = (first, now)
            return False
        return rose is not None and now - rose > _PATIENCE


def verdict_of(
    snapshot: Snapshot, silent: tuple[str, ...], deaf: tuple[DeafWorker, ...] = ()
) -> Verdict:
    """The verdict; what stops work is bad, what only hides or delays it is a warning."""
    if not snapshot.health:
        return Verdict("warn", (), 0, waiting=True)
    bad = [Trouble("check", check.name, check.detail) for check in snapshot.health if not check.ok]
    blind = bool(snapshot.gaps) and not snapshot.workers
    if not snapshot.workers and not blind:
        bad.append(Trouble("no-workers"))
    elif snapshot.workers:
        bad += [
            Trouble("no-consumer", queue.name, str(queue.length))
            for queue in snapshot.queues
            if queue.length and not queue.consumers
        ]
    warnings = [Trouble("silent-worker", name) for name in silent]
    warnings += [Trouble("was-deaf", one.node, one.why, one.at) for one in deaf]
    kind = "bad" if bad else "warn" if warnings or snapshot.gaps else "good"
    return Verdict(kind, (*bad, *warnings), len(snapshot.workers))
