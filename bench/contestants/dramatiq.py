"""Dramatiq."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.dramatiq"


def _dramatiq(name: str, threads: int, benchmarks: tuple[str, ...]) -> Contestant:
    return Contestant(
        name=f"dramatiq {name}",
        worker=("dramatiq", _APP, "--processes", "2", "--threads", "{concurrency}"),
        app=_APP,
        benchmarks=benchmarks,
        concurrency=threads,
    )


CONTESTANTS = (
    Contestant("dramatiq", (), _APP, ("publish",)),
    _dramatiq("2 × 5", 5, ("drain", "latency", "idle", "start")),
    _dramatiq("AsyncIO 2 × 100", 100, ("sleepers",)),
)
