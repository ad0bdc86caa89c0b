"""SAQ, in an environment of its own: it asks for an older redis-py than the others get."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.saq"


def _saq(processes: int, concurrency: int, benchmarks: tuple[str, ...]) -> Contestant:
    return Contestant(
        name=f"saq {processes} × {concurrency}",
        worker=("saq", f"{_APP}.settings", "--quiet", "--workers", str(processes)),
        app=_APP,
        benchmarks=benchmarks,
        environment="saq",
        concurrency=concurrency,
    )


CONTESTANTS = (
    Contestant("saq", (), _APP, ("publish",), environment="saq"),
    _saq(2, 10, ("drain", "latency", "start")),
    _saq(1, 10, ("idle",)),
    _saq(1, 1000, ("sleepers", "latency-busy")),
)
