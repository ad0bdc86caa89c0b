"""RQ: a pool of workers that run jobs in themselves, and one that forks for each job."""

from __future__ import annotations

from bench.contestant import Contestant

_APP = "bench.apps.rq"


def _rq(
    name: str, worker: str, count: int, benchmarks: tuple[str, ...], share: float
) -> Contestant:
    pool = ("rq", "worker-pool", "--quiet", "--url", "{url}", "--path", ".")
    return Contestant(
        name=f"rq {name}",
        worker=(*pool, "--num-workers", "{concurrency}", "--worker-class", worker, "{queue}"),
        app=_APP,
        benchmarks=benchmarks,
        concurrency=count,
        share=share,
    )


CONTESTANTS = (
    Contestant("rq", (), _APP, ("publish",)),
    _rq("pool of 2 simple", "rq.worker.SimpleWorker", 2, ("drain", "latency"), 0.5),
    _rq("pool of 10 forking", "rq.worker.Worker", 10, ("drain",), 0.05),
    _rq("pool of 1 simple", "rq.worker.SimpleWorker", 1, ("idle", "start"), 1),
)
