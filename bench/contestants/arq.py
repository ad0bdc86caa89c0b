"""arq, in an environment of its own: it asks for redis-py 5, Celery for 6.4 or newer."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.arq"


def _arq(max_jobs: int, benchmarks: tuple[str, ...], share: float = 1.0) -> Contestant:
    return Contestant(
        name=f"arq max_jobs {max_jobs}",
        worker=("arq", f"{_APP}.Worker"),
        app=_APP,
        benchmarks=benchmarks,
        environment="arq",
        concurrency=max_jobs,
        share=share,
    )


CONTESTANTS = (
    Contestant("arq", (), _APP, ("publish",), environment="arq"),
    _arq(10, ("drain", "latency", "idle", "start"), share=0.2),
    _arq(1000, ("sleepers", "latency-busy")),
)
