"""What one run of one contestant has: an empty server, marks, workers, a publisher."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.contestant import ROOT, Contestant, Setting
from bench.errors import BenchError
from bench.figures import Figures
from bench.guard import Guard
from bench.marks import Marks
from bench.processes import Process, spawn
from bench.server import Server, serving

_POLL = 0.01  # seconds between looks at the marks


@dataclass(frozen=True)
class Case:
    """What is asked of one run."""

    contestant: Contestant
    setting: Setting
    jobs: int
    round: int = 1  # the first is 1
    server: str = "valkey"
    deadline: float = 180.0  # seconds a run may take once its worker started
    stall: float = 20.0  # seconds without a job done after which it hangs
    idle: float = 60.0  # seconds of the idle benchmark
    home: Path = ROOT  # kept from round to round


@dataclass
class Stage:
    """A run in progress."""

    case: Case
    server: Server
    marks: Marks
    folder: Path
    guard: Guard
    variables: dict[str, str] = field(default_factory=dict)  # of workers and publisher

    def publish(self, job: str, slots: range, queue: str = "bench", *options: str) -> Figures:
        """Run the publisher (bench/drive.py); its figures, empty when it cannot do this job."""
        numbers = ["--count", str(len(slots)), "--first", str(slots.start)]
        return self.drive("bench.drive", job, *numbers, *options, queue=queue)

    def drive(self, module: str, *words: str, queue: str = "bench") -> Figures:
        """Run a module of the harness with the contestant's app; the figures it prints."""
        contestant = self.case.contestant
        python = str(contestant.bin / "python")
        command = [python, "-m", module, *words, "--app", contestant.app]
        environment = self._environment(queue, contestant.concurrency)
        log = self.folder / "publisher.log"
        with spawn(command, self.guard, log, environment, ROOT) as process:
            try:
                code = process.wait(self.case.deadline)
            except subprocess.TimeoutExpired:
                raise BenchError(f"the publisher hangs\n{process.last_lines()}") from None
        if code:
            raise BenchError(f"the publisher failed ({code})\n{process.last_lines()}")
        figures: Figures = json.loads(process.last_lines(1))
        return figures

    @contextmanager
    def workers(
        self,
        concurrency: int | None = None,
        queues: tuple[str, ...] = ("bench",),
        *,
        peak: bool = True,
    ) -> Iterator[list[Process]]:
        """The contestant's workers, one set for each queue, while the block runs.

        ``peak``: look at their memory twice a second, for the most they had.
        """
        with contextlib.ExitStack() as stack:
            started = [
                stack.enter_context(self._worker(concurrency, queue, copy))
                for queue in queues
                for copy in range(self.case.contestant.copies)
            ]
            for process in started if peak else ():
                process.watch_memory()
            yield started

    def wait(self, reached: Callable[[], bool], workers: list[Process]) -> None:
        """Until so. Raises BenchError when the workers ended, hang, or take too long."""
        last, done = time.monotonic(), self.marks.done()
        deadline = last + self.case.deadline
        while not reached():
            time.sleep(_POLL)
            now = time.monotonic()
            if self.marks.done() > done:
                last, done = now, self.marks.done()
            self._check(workers, now, last, deadline)

    def counters(self, workers: list[Process]) -> Figures:
        """CPU seconds of the workers; commands, reads and CPU seconds of the server; so far."""
        return {"cpu": sum(worker.cpu() for worker in workers), **self.server.figures()}

    def _worker(
        self, concurrency: int | None, queue: str, copy: int
    ) -> contextlib.AbstractContextManager[Process]:
        contestant = self.case.contestant
        slots = concurrency or contestant.concurrency
        values = {"concurrency": slots, "url": self.server.url, "queue": queue}
        return spawn(
            contestant.command(self.case.setting, **values),
            self.guard,
            self.folder / f"worker-{queue}-{copy}.log",
            self._environment(queue, slots),
            ROOT,
            contestant.grace,
        )

    def _environment(self, queue: str, concurrency: int) -> dict[str, str]:
        return {
            "BENCH_URL": self.server.url,
            "BENCH_QUEUE": queue,
            "BENCH_SETTING": self.case.setting,
            "BENCH_CONCURRENCY": str(concurrency),
            "BENCH_MARKS": str(self.folder / "marks"),
            "BENCH_SLOTS": str(self.marks.count),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RQ_REDIS_URL": self.server.url,
            "PATH": f"{self.case.contestant.bin}{os.pathsep}{os.environ.get('PATH', '')}",
            **self.case.contestant.variables,
            **self.variables,
        }

    def _check(self, workers: list[Process], now: float, last: float, deadline: float) -> None:
        reason = None
        if ended := [worker for worker in workers if not worker.running()]:
            reason, workers = "the worker ended", ended
        elif now - last > self.case.stall:
            reason = f"hangs: no job done for {self.case.stall:g} s"
        elif now > deadline:
            reason = f"not done after {self.case.deadline:g} s"
        if reason:
            count = f"{self.marks.done()} of {self.marks.count} jobs ran"
            raise BenchError(f"{reason}; {count}\n{workers[0].last_lines()}")


@contextmanager
def staging(case: Case, slots: int, folder: Path, guard: Guard) -> Iterator[Stage]:
    """A stage with an empty server and ``slots`` marks."""
    with serving(case.server, folder, guard) as server:
        yield Stage(case, server, Marks(folder / "marks", slots), folder, guard)
