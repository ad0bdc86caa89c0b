"""No-op jobs queued beforehand."""

from __future__ import annotations

import time

from bench.figures import Figures
from bench.measure import Span
from bench.stage import Stage

_WARM_UP = 0.05  # share of the jobs after which the clock starts


def measure(stage: Stage) -> Figures:
    """The clock starts when the first 5 % have run: start-up does not count (decision 0006)."""
    jobs = stage.case.jobs
    stage.publish("fill", range(jobs))
    with stage.workers() as workers:
        stage.wait(lambda: stage.marks.done() >= jobs * _WARM_UP, workers)
        counters = stage.counters(workers)
        span = Span(stage, workers, time.monotonic(), stage.marks.done(), counters)
        stage.wait(lambda: stage.marks.done() == jobs, workers)
        return span.figures()
