"""streaQ."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.streaq"


def _streaq(processes: int, concurrency: int, benchmarks: tuple[str, ...]) -> Contestant:
    return Contestant(
        name=f"streaq {processes} × {concurrency}",
        worker=("streaq", "run", f"{_APP}:worker", "--workers", str(processes)),
        app=_APP,
        benchmarks=benchmarks,
        concurrency=concurrency,
    )


CONTESTANTS = (
    Contestant("streaq", (), _APP, ("publish",)),
    _streaq(2, 16, ("drain", "latency", "start")),
    _streaq(1, 16, ("idle",)),
    _streaq(1, 1000, ("sleepers", "latency-busy")),
)
