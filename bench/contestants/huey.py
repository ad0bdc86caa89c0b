"""Huey: processes for jobs that compute, threads for jobs that wait."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.huey"


def _huey(name: str, kind: str, count: int, benchmarks: tuple[str, ...]) -> Contestant:
    return Contestant(
        name=f"huey {name}",
        worker=("huey_consumer", "-q", "-k", kind, "-w", "{concurrency}", f"{_APP}.huey"),
        app=_APP,
        benchmarks=benchmarks,
        concurrency=count,
    )


CONTESTANTS = (
    Contestant("huey", (), _APP, ("publish",)),
    _huey("2 processes", "process", 2, ("drain", "latency", "start")),
    _huey("1 thread", "thread", 1, ("idle",)),
    _huey("100 threads", "thread", 100, ("sleepers",)),
)
