"""Stock Celery's worker and pools on Cloche's transport and result backend."""

from __future__ import annotations

from bench.contestant import SETTINGS, Contestant

_APP = "bench.apps.cloche"


def _cloche(
    name: str, pool: str, concurrency: int, benchmarks: tuple[str, ...], share: float
) -> Contestant:
    """As contestants/celery.py starts them, so that only the URLs differ."""
    return Contestant(
        name=name,
        worker=("celery", "-A", _APP, "worker", "-P", pool, "-c", "{concurrency}"),
        app=_APP,
        benchmarks=benchmarks,
        environment="own",
        settings=SETTINGS,
        production=("-E",),
        concurrency=concurrency,
        share=share,
    )


CONTESTANTS = (
    Contestant("cloche", (), _APP, ("publish",), environment="own", settings=SETTINGS, share=10),
    _cloche("cloche prefork -c 2", "prefork", 2, ("drain", "latency", "start"), 2),
    _cloche("cloche threads -c 10", "threads", 10, ("drain", "latency"), 5),
    _cloche("cloche solo", "solo", 1, ("drain", "idle", "start"), 3),
)
