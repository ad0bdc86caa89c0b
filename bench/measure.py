"""Counters over a span of a run, made into figures per job."""

from __future__ import annotations

from dataclasses import dataclass

from bench.figures import Figures
from bench.processes import Process
from bench.stage import Stage


@dataclass(frozen=True)
class Span:
    """The beginning of what is measured: a moment (monotonic seconds), jobs done, counters."""

    stage: Stage
    workers: list[Process]
    began: float
    done: int
    counters: Figures

    def figures(self) -> Figures:
        """Per job since then; to be called right after the last job."""
        after = self.stage.counters(self.workers)
        spent = {name: after[name] - before for name, before in self.counters.items()}
        marks = self.stage.marks
        jobs = marks.done() - self.done
        return {
            "rate": jobs / (marks.last_finish() - self.began),
            "seconds": marks.last_finish() - self.began,
            "jobs": jobs,
            "cpu_us": spent["cpu"] / jobs * 1e6,
            "server_cpu_us": spent["server_cpu"] / jobs * 1e6,
            "commands": spent["commands"] / jobs,
            "reads": spent["reads"] / jobs,
            "rss_mib": sum(worker.memory() for worker in self.workers),
            "repeats": marks.repeats(),
        }
