"""Cloche's worker, and Celery's own worker on Cloche's transport and result backend alone."""

from __future__ import annotations

from dataclasses import replace

from bench.contestant import SETTINGS, Contestant

_APP = "bench.apps.cloche"


def _cloche(
    name: str, pool: str, concurrency: int, benchmarks: tuple[str, ...], share: float
) -> Contestant:
    """What a user of Cloche runs, with its defaults; the app says whether events are on."""
    pool_words = ("-P", pool, "-c", "{concurrency}")
    return Contestant(
        name=name,
        # As Celery's default, no line per task.
        worker=("cloche", "worker", "-A", _APP, *pool_words, "-Q", "{queue}", "-l", "WARNING"),
        app=_APP,
        benchmarks=benchmarks,
        environment="own",
        settings=SETTINGS,
        concurrency=concurrency,
        share=share,
    )


def _transport_alone(name: str, pool: str, concurrency: int, share: float) -> Contestant:
    """As contestants/celery.py starts them, so that only the application's URLs differ."""
    return Contestant(
        name=name,
        worker=("celery", "-A", _APP, "worker", "-P", pool, "-c", "{concurrency}"),
        app=_APP,
        benchmarks=("drain",),
        environment="own",
        settings=SETTINGS,
        production=("-E",),
        concurrency=concurrency,
        share=share,
    )


CONTESTANTS = (
    # Ten times as often as by default, to see what the replacing costs.
    replace(
        _cloche("cloche prefork -c 2, processes of 100 tasks", "prefork", 2, ("latency",), 2),
        variables={"CLOCHE_WORKERS__WORKER__MAX_TASKS_PER_CHILD": "100"},
    ),
    Contestant("cloche", (), _APP, ("publish",), environment="own", settings=SETTINGS, share=10),
    _cloche("cloche prefork -c 2", "prefork", 2, ("drain", "latency", "start"), 2),
    _cloche("cloche threads -c 10", "threads", 10, ("drain", "latency"), 5),
    _cloche("cloche solo", "solo", 1, ("drain", "idle", "start"), 3),
    _transport_alone("cloche transport, celery prefork -c 2", "prefork", 2, 2),
    _transport_alone("cloche transport, celery threads -c 10", "threads", 10, 5),
)
