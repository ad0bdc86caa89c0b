"""What it costs to wait for work."""

from __future__ import annotations

import time

from bench.figures import Figures
from bench.stage import Stage

WORKERS = 10
_SETTLE = 3.0  # seconds after the last worker ran its first job


def measure(stage: Stage) -> Figures:
    """Every worker proves with one job that it listens; then nothing happens for a while."""
    queues = tuple(f"bench-{number}" for number in range(WORKERS))
    # Looking at ten workers' memory all the time would cost more than they do.
    with stage.workers(queues=queues, peak=False) as workers:
        for slot, queue in enumerate(queues):
            stage.publish("one", range(slot, slot + 1), queue)
        stage.wait(lambda: stage.marks.done() == WORKERS, workers)
        time.sleep(_SETTLE)
        began, before = time.monotonic(), stage.counters(workers)
        time.sleep(stage.case.idle)
        seconds, after = time.monotonic() - began, stage.counters(workers)
        share = {name: (after[name] - before[name]) / seconds for name in before}
        return {
            "cpu_percent": (share["cpu"] + share["server_cpu"]) * 100,
            "workers_percent": share["cpu"] * 100,
            "server_percent": share["server_cpu"] * 100,
            "commands_per_second": share["commands"],
            "rss_mib": sum(worker.memory() for worker in workers),
        }
