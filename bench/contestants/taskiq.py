"""taskiq with its Redis list and stream brokers."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.taskiq"


def _taskiq(kind: str, processes: int, limit: int, benchmarks: tuple[str, ...]) -> Contestant:
    worker = ("taskiq", "worker", f"{_APP}:broker", "--log-level", "WARNING")
    return Contestant(
        name=f"taskiq {kind}, {processes} × {limit}",
        worker=(*worker, "--workers", str(processes), "--max-async-tasks", "{concurrency}"),
        app=_APP,
        benchmarks=benchmarks,
        concurrency=limit,
        variables={"BENCH_TASKIQ": kind},
    )


CONTESTANTS = (
    Contestant("taskiq list", (), _APP, ("publish",), variables={"BENCH_TASKIQ": "list"}),
    _taskiq("list", 2, 100, ("drain", "latency", "start")),
    _taskiq("stream", 2, 100, ("drain",)),
    _taskiq("list", 1, 100, ("idle",)),
    _taskiq("stream", 1, 1000, ("sleepers", "latency-busy")),
    _taskiq("list", 2, 1000, ("sleepers",)),
)
