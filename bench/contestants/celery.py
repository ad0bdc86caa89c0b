"""Stock Celery in its pools, and the asyncio pool others wrote for it."""

from __future__ import annotations

from dataclasses import replace

from bench.contestant import SETTINGS, Contestant

_APP = "bench.apps.celery"


def _celery(
    name: str,
    pool: str,
    concurrency: int,
    benchmarks: tuple[str, ...],
    *,
    share: float = 1.0,
    sleeper: str = "own loop",
    app: str = _APP,
    pool_class: str = "",
) -> Contestant:
    """Its default log level writes no line per task."""
    return Contestant(
        name=name,
        worker=("celery", "-A", app, "worker", "-P", pool, "-c", "{concurrency}"),
        app=app,
        benchmarks=benchmarks,
        settings=SETTINGS,
        production=("-E",),
        concurrency=concurrency,
        share=share,
        variables={"BENCH_SLEEPER": sleeper, "CELERY_CUSTOM_WORKER_POOL": pool_class},
    )


_prefork = _celery("celery prefork -c 2, processes of 100 tasks", "prefork", 2, ("latency",))

CONTESTANTS = (
    replace(_prefork, worker=(*_prefork.worker, "--max-tasks-per-child", "100")),
    Contestant("celery", (), _APP, ("publish",), settings=SETTINGS),
    _celery("celery prefork -c 2", "prefork", 2, ("drain", "latency", "start")),
    _celery("celery prefork -c 10", "prefork", 10, ("drain",)),
    _celery("celery threads -c 10", "threads", 10, ("drain", "latency")),
    _celery("celery solo", "solo", 1, ("drain", "idle", "start")),
    _celery("celery gevent -c 100", "gevent", 100, ("drain",), sleeper="blocking"),
    _celery("celery prefork -c 1", "prefork", 1, ("idle",)),
    _celery("celery prefork -c 10, asyncio.run", "prefork", 10, ("sleepers",), share=0.1),
    _celery("celery threads -c 100, asyncio.run", "threads", 100, ("sleepers",), share=0.4),
    _celery("celery gevent -c 500", "gevent", 500, ("sleepers",), sleeper="blocking"),
    _celery(
        "celery-aio-pool",
        "custom",
        1000,
        ("sleepers",),
        share=0.02,
        sleeper="native",
        app="bench.apps.celery_aio_pool",
        pool_class="celery_aio_pool.pool:AsyncIOPool",
    ),
)
