"""One row of the fault matrix: load, a fault, and what came of it, counted.

The ledger is outside the broker. Times are Unix seconds.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil

from cloche.testing import wait_until
from tests.integration.transport.harness import Bench, Effect, Worker

TASKS = int(os.environ.get("CHAOS_TASKS", "200"))
#: Whether outages have the length the matrix names, or a fraction of it.
WHOLE = TASKS >= 2000
CONCURRENCY = 4
#: What a task sleeps.
TASK_SECONDS = 0.01
#: How long all of it may take when nothing is wrong, per task: a loaded machine is slow.
PATIENCE = 90 + TASKS * 0.06
#: Seconds before a fault in which an acknowledgement may still have been on its way.
ACK_WINDOW = 0.25

_TASK_LINE = re.compile(r"Task \S+ (received|succeeded)")


@dataclass(frozen=True, slots=True)
class Allowed:
    """A row of the matrix: duplicates, seconds, log lines of one process at most."""

    duplicates: int
    seconds: float
    lines: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a row cost. ``late``: repeats of tasks that ended within ACK_WINDOW of the fault."""

    row: int
    fault: str
    tasks: int
    lost: int
    duplicates: int
    late: int
    seconds: float
    lines: int
    allowed: Allowed


@dataclass(frozen=True, slots=True)
class Cost:
    """What a fault cost elsewhere: tasks that are nowhere any more, that are in the hands of the
    dead, runs too many."""

    fault: str
    tasks: int
    gone: int
    held: int
    repeats: int


@dataclass
class Load:
    """Publishes numbered tasks from a thread; ``acknowledged`` are those the broker took."""

    bench: Bench
    tasks: int = TASKS
    seconds: float = TASK_SECONDS
    #: Celery's own retry, with which a message may be published twice under one id.
    retry: bool = False
    #: Every so many-th task waits a second before it runs.
    delayed: int = 0
    acknowledged: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        for number in range(self.tasks):
            options: dict[str, Any] = {"retry": self.retry, "seconds": self.seconds}
            if self.delayed and number % self.delayed == 0:
                options["countdown"] = 1
            while True:
                try:
                    self.bench.send(number, **options)
                except Exception:
                    time.sleep(0.1)  # not acknowledged: publish it again, with another id
                    continue
                break
            self.acknowledged[number] = time.time()

    def join(self) -> None:
        self._thread.join(timeout=PATIENCE)
        assert not self._thread.is_alive(), "the producer got through"


class Row:
    """Measures one row on a bench whose workers and load run."""

    def __init__(self, number: int, fault: str, bench: Bench, load: Load) -> None:
        self.number = number
        self.fault = fault
        self.bench = bench
        self.load = load
        self.began = 0.0
        self.ended = 0.0
        self.running: set[str] = set()
        self._logs: dict[Worker, int] = {}
        self._before: dict[Worker, tuple[int, int]] = {}

    def under_way(self, share: float = 0.2) -> None:
        """Wait until that share of the tasks ended."""
        enough = self.load.tasks * share
        wait_until(lambda: len(self.bench.ledger.count("end")) >= enough, "under way", PATIENCE)

    def begin(self) -> None:
        """The fault strikes in the next moment."""
        for worker in self.bench.workers:
            if worker.alive:
                self._logs[worker] = len(worker.log)
                self._before[worker] = resources(worker)
        self.began = self.ended = time.time()

    def end(self) -> None:
        """The fault is over."""
        self.ended = time.time()

    def since(self, moment: float) -> float:
        """Seconds from ``moment`` to the end of the first task that started after it."""
        effects = self.bench.ledger.effects()
        began = {(e.run, e.pid) for e in effects if e.word == "start" and e.at >= moment}
        ends = [e.at for e in effects if e.word == "end" and (e.run, e.pid) in began]
        return min(at for at in ends if at >= moment) - moment

    def longest_gap(self) -> float:
        """Seconds: the longest time since the fault in which no task started."""
        starts = [e.at for e in self.bench.ledger.effects("start") if e.at >= self.began]
        return max(later - sooner for sooner, later in pairwise([self.began, *sorted(starts)]))

    def recovery_of_later(self, held: Iterable[int]) -> Callable[[], float]:
        """Asked at the end: seconds from the fault until the last of those numbers had ended."""
        wanted = set(held)

        def seconds() -> float:
            ends = self.bench.ledger.effects("end")
            after = {e.number: e.at for e in reversed(ends) if e.number in wanted}
            return max([0.0, *(at - self.began for at in after.values())])

        return seconds

    def finish(
        self,
        allowed: Allowed,
        *,
        seconds: float | Callable[[], float] | None = None,
        late: bool = False,
        lost: Iterable[int] = (),
    ) -> Measured:
        """Wait for the last task and judge.

        ``seconds``: the recovery, unless it is until the first task after the fault's end.
        ``late``: acknowledgements may have been on their way when the fault struck.
        ``lost``: numbers that may be lost.
        """
        bench, load = self.bench, self.load
        load.join()
        must = set(load.acknowledged) - set(lost)
        wait_until(lambda: set(bench.ledger.count("end")) >= must, "all tasks ran", PATIENCE)
        wait_until(lambda: self._empty(), "nothing in flight, nothing left behind")
        repeats, forgiven = self._repeats(late=late)
        if seconds is None and not self._began_after(self.ended):
            self._probe()  # the load was done by then
        taken = self.since(self.ended) if seconds is None else seconds
        if callable(taken):
            taken = taken()
        measured = Measured(
            self.number,
            self.fault,
            load.tasks,
            len(set(load.acknowledged) - set(bench.ledger.count("end"))),
            repeats,
            forgiven,
            taken,
            max([0, *(self._lines(worker) for worker in self._logs)]),
            allowed,
        )
        self._check_resources()
        return measured

    def _began_after(self, moment: float) -> bool:
        return any(e.at >= moment for e in self.bench.ledger.effects("start"))

    def _probe(self) -> None:
        number = self.load.tasks
        self.bench.send(number)
        wait_until(lambda: self.bench.ledger.count("end")[number], "one more task ran")

    def _empty(self) -> bool:
        client = self.bench.client
        if client.keys("cloche:reaping*") or client.llen("celery"):
            return False
        return self.bench.inflight() == 0

    def _repeats(self, *, late: bool) -> tuple[int, int]:
        """Repeats of what ran at the fault or later; repeats of what ended just before it."""
        starts: Counter[str] = Counter(e.run for e in self.bench.ledger.effects("start"))
        ends: dict[str, Effect] = {}
        for effect in self.bench.ledger.effects("end"):
            ends.setdefault(effect.run, effect)
        counted = forgiven = 0
        for run, count in starts.items():
            first = ends.get(run)
            just = first and self.began - ACK_WINDOW <= first.at <= self.began
            if late and just and count == 2:
                forgiven += 1
            else:
                counted += count - 1
        return counted, forgiven

    def _lines(self, worker: Worker) -> int:
        lines = worker.log[self._logs[worker] :].splitlines()
        return sum(1 for line in lines if line.strip() and not _TASK_LINE.search(line))

    def _check_resources(self) -> None:
        """Survivors hold no more than before, and idle costs no CPU."""
        for worker, (files, memory) in self._before.items():
            if worker.alive:
                process = psutil.Process(worker.process.pid)
                busy = sum(process.cpu_times()[:2])
                time.sleep(1)
                assert sum(process.cpu_times()[:2]) - busy < 0.5, f"{worker.log_path.stem} spins"
                now_files, now_memory = resources(worker)
                assert now_files <= files + 8, f"descriptors: {files}, now {now_files}"
                assert now_memory - memory < 40e6, f"memory: {memory}, now {now_memory}"


def judge(measured: Measured) -> None:
    """Compare with the matrix, exactly."""
    allowed = measured.allowed
    assert measured.duplicates <= allowed.duplicates, measured
    assert measured.late <= CONCURRENCY, measured
    assert measured.seconds <= allowed.seconds, measured
    assert measured.lines <= allowed.lines, measured


def number_of(text: str) -> int:
    """The number of a task, from its message."""
    return int(json.loads(base64.b64decode(json.loads(text)["body"]))[0][0])


def inflight_of(bench: Bench, worker: Worker) -> set[int]:
    """Numbers of the tasks this worker holds, by the server."""
    found: set[int] = set()
    for key in map(str, bench.client.keys(f"cloche:inflight:*:{worker.process.pid}:*")):
        held = {str(name): str(text) for name, text in bench.client.hgetall(key).items()}
        found |= {number_of(text) for name, text in held.items() if "/" in name}
    return found


def resources(worker: Worker) -> tuple[int, int]:
    """Descriptors and resident bytes."""
    process = psutil.Process(worker.process.pid)
    return process.num_fds(), process.memory_info().rss
