"""Publishing from one process, no worker running."""

from __future__ import annotations

from bench.drive import WARM_UP
from bench.figures import Figures
from bench.stage import Stage


def measure(stage: Stage) -> Figures:
    """One ordinary call after the other; then the batch call, where the library has one."""
    jobs = range(stage.case.jobs)
    before = stage.server.figures()
    single = stage.publish("one", jobs, "bench", "--warm")
    after = stage.server.figures()
    published = len(jobs) + WARM_UP
    batch = stage.publish("many", jobs, "bench", "--warm")
    figures = {
        "rate": len(jobs) / single["seconds"],
        "cpu_us": single["cpu"] / len(jobs) * 1e6,
        "commands": (after["commands"] - before["commands"]) / published,
    }
    if batch:
        figures["bulk_rate"] = len(jobs) / batch["seconds"]
    return figures
