"""From just before publish to the job's first line, one job each 10 ms."""

from __future__ import annotations

import time

from bench.figures import Figures, percentile
from bench.processes import Process
from bench.stage import Stage

SLEEPERS = 1_000
_GAP = 0.01  # seconds between jobs
_ROOM = 100  # slots beyond the sleepers'
_SETTLE = 1.0  # seconds for a worker's other processes to start
_WARM_UP = 0.1  # share of the jobs that are not counted


def slots(jobs: int) -> int:
    """The measured jobs' and one that tells the worker listens."""
    return jobs + 1


def measure(stage: Stage) -> Figures:
    """On an idle worker."""
    with stage.workers() as workers:
        return _delays(stage, workers, first=0)


def measure_busy(stage: Stage) -> Figures:
    """While 1,000 jobs of this worker sleep, and do so until the end."""
    seconds = str(30 + 2 * stage.case.jobs * _GAP)
    stage.publish("sleeps", range(SLEEPERS), "bench", "--seconds", seconds)
    with stage.workers(SLEEPERS + _ROOM) as workers:
        stage.wait(lambda: stage.marks.running() >= SLEEPERS, workers)
        return _delays(stage, workers, first=SLEEPERS)


def _delays(stage: Stage, workers: list[Process], first: int) -> Figures:
    jobs = range(first + 1, first + slots(stage.case.jobs))
    stage.publish("one", range(first, first + 1))
    stage.wait(lambda: stage.marks.done(first, first + 1) == 1, workers)
    time.sleep(_SETTLE)
    stage.publish("paced", jobs, "bench", "--seconds", str(_GAP))
    stage.wait(lambda: stage.marks.done(jobs.start, jobs.stop) == len(jobs), workers)
    counted = stage.marks.delays(jobs.start + int(len(jobs) * _WARM_UP), jobs.stop)
    return {
        "p50_ms": percentile(counted, 0.50) * 1e3,
        "p99_ms": percentile(counted, 0.99) * 1e3,
        "worst_ms": max(counted) * 1e3,
    }
