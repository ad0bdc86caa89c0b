"""Workers that live and do not work, found by comparing what they say over time."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from cloche.process.heartbeat import PERIOD, SILENT, Heartbeat
from cloche.records import Snapshot

#: Seconds after which a worker's work must have shown up as events.
_EVENTS_TIMEOUT = 5.0


@dataclass(slots=True)
class Suspicion:
    """Since when (monotonic) a worker has made no progress, and how far it was."""

    pid: int
    processed: int
    cpu: float
    since: float | None = None


@dataclass(frozen=True, slots=True)
class HungWorker:
    """A verdict. ``waiting`` are messages in its queues."""

    beat: Heartbeat
    why: str
    waiting: int
    seconds: float


class HungWorkers:
    """Says which of the workers hang; knows only what it is shown."""

    def __init__(self, after: float) -> None:
        self._after = after
        self._suspicions: dict[str, Suspicion] = {}

    def hear(
        self, beat: Heartbeat, waiting: int, *, stopped: bool, cpu: float, now: float
    ) -> HungWorker | None:
        """One look at a worker: ``waiting`` messages, ``stopped`` by a signal, ``cpu`` seconds
        used so far. A verdict when it has hung for long enough."""
        before = self._suspicions.get(beat.node)
        worked = before is not None and cpu > before.cpu
        why = _why(beat, now, stopped=stopped, worked=worked) if waiting else None
        if (
            before is None
            or why is None
            or (before.pid, before.processed) != (beat.pid, beat.processed)
        ):
            since = now if why else None
            self._suspicions[beat.node] = Suspicion(beat.pid, beat.processed, cpu, since)
            return None
        before.cpu = cpu
        before.since = now if before.since is None else before.since
        if now - before.since < self._after:
            return None
        return HungWorker(beat, why, waiting, now - before.since)

    def forget(self, node: str | None = None) -> None:
        """Begin anew with one worker, or with all: the broker did not answer."""
        if node is None:
            self._suspicions.clear()
        else:
            self._suspicions.pop(node, None)


def _why(beat: Heartbeat, now: float, *, stopped: bool, worked: bool) -> str | None:
    """In what way it does not work, in words; None if it does, or has a reason not to."""
    if stopped:
        return "it is stopped by a signal"
    if now - beat.at > SILENT:
        busy = beat.active and worked  # a task may hold the interpreter for long
        return None if busy else "it gives no sign of life"
    if not beat.connected:
        return "it does not connect to the broker"
    if beat.stands_still:
        return "its loop stands still"
    if beat.active or beat.reserved:
        return None
    still = now - beat.turned > 2.5 * PERIOD
    return "its loop stands still" if still else "it fetches nothing"


class Silence:
    """Finds workers that work and send no events, by comparing their counters over time."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[int, float | None]] = {}

    def silent(self, snapshot: Snapshot, heard: Collection[str]) -> tuple[str, ...]:
        """Names of workers whose counter has risen for a while and that are not ``heard``: no
        event of theirs has come."""
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
        return rose is not None and now - rose > _EVENTS_TIMEOUT
