"""Jobs that wait and do nothing else."""

from __future__ import annotations

from bench.figures import Figures
from bench.measure import Span
from bench.stage import Stage

_SLEEP = "0.1"  # seconds


def measure(stage: Stage) -> Figures:
    """The clock starts with the first job: reaching full concurrency is part of the work."""
    jobs = stage.case.jobs
    stage.publish("sleeps", range(jobs), "bench", "--seconds", _SLEEP)
    with stage.workers() as workers:
        stage.wait(stage.marks.begun, workers)
        counters = stage.counters(workers)
        span = Span(stage, workers, stage.marks.first_start(), 0, counters)
        stage.wait(lambda: stage.marks.done() == jobs, workers)
        return span.figures()
