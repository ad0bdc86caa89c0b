"""Which jobs ran, and when: a file shared by publisher, workers and harness.

Kept apart from every contestant's own result store, so that results can be off and so that a
contestant cannot be wrong about itself. A job writes its own slot only: no lock, no system call,
well under a microsecond. Standard library only: every contestant's environment imports this.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array
from functools import cache
from pathlib import Path

_WORD = 8  # a column of clock readings: unsigned, native order, CLOCK_MONOTONIC nanoseconds
_CLOCKS = ("sent", "started", "finished")


class Marks:
    """Slots 0 … count-1: runs (one byte each), then the three clock columns."""

    def __init__(self, path: Path, count: int) -> None:
        """Open the file, or make it when it is not there (all zero)."""
        size = count * (1 + _WORD * len(_CLOCKS))
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self.count = count
        view = memoryview(self._map)
        self._runs = view[:count]
        # Clocks start at a multiple of 8 only if count is one; cast does not mind.
        starts = [count + _WORD * count * column for column in range(len(_CLOCKS))]
        self._sent, self._started, self._finished = (
            view[start : start + _WORD * count].cast("Q") for start in starts
        )

    @classmethod
    def from_environment(cls) -> Marks:
        """The marks named by ``BENCH_MARKS`` (path) and ``BENCH_SLOTS`` (count)."""
        return cls(Path(os.environ["BENCH_MARKS"]), int(os.environ["BENCH_SLOTS"]))

    def sent(self, slot: int) -> None:
        """The publisher is about to publish the job of this slot."""
        self._sent[slot] = time.monotonic_ns()

    def started(self, slot: int) -> None:
        """The job's first line runs."""
        self._started[slot] = time.monotonic_ns()

    def finished(self, slot: int) -> None:
        """The job's last line runs; counts one run, at most 255."""
        self._finished[slot] = time.monotonic_ns()
        self._runs[slot] = min(self._runs[slot] + 1, 255)

    def done(self, first: int = 0, last: int | None = None) -> int:
        """How many of these slots ran at least once."""
        runs = bytes(self._runs[first:last])
        return len(runs) - runs.count(0)

    def running(self) -> int:
        """How many jobs have started and not finished."""
        started, finished = array("Q", self._started), array("Q", self._finished)
        return sum(1 for a, b in zip(started, finished, strict=True) if a and not b)

    def begun(self) -> bool:
        """Whether any job has started."""
        return any(bytes(self._started))

    def repeats(self) -> int:
        """How many runs were one too many."""
        return sum(self._runs) - self.done()

    def last_finish(self) -> float:
        """Seconds (monotonic clock) of the last finish."""
        return max(self._finished) / 1e9

    def first_start(self) -> float:
        """Seconds (monotonic clock) of the first start; 0 when nothing started."""
        return min((clock for clock in self._started if clock), default=0) / 1e9

    def delays(self, first: int = 0, last: int | None = None) -> list[float]:
        """Seconds from sent to started, of each of these slots that did both."""
        pairs = zip(self._sent[first:last], self._started[first:last], strict=True)
        return [(start - sent) / 1e9 for sent, start in pairs if sent and start]


@cache
def _marks() -> Marks:
    return Marks.from_environment()


def mark(slot: int) -> None:
    """A job that does nothing, as every contestant runs it. A negative slot leaves no mark."""
    if slot >= 0:
        marks = _marks()
        marks.started(slot)
        marks.finished(slot)


def start(slot: int) -> None:
    """The first line of a job that takes time."""
    _marks().started(slot)


def finish(slot: int) -> None:
    """The last line of a job that takes time."""
    _marks().finished(slot)


def send(slot: int) -> None:
    """What the publisher does before it publishes a job whose delay is measured."""
    _marks().sent(slot)
