"""Celery on Cloche's transport."""

from __future__ import annotations

from bench.contestant import Contestant

CONTESTANTS = (
    Contestant(
        "cloche transport, threads -c 10",
        (
            *("celery", "-A", "bench.apps.cloche_transport", "worker"),
            *("-P", "threads", "-c", "{concurrency}", "-Q", "{queue}"),
        ),
        "bench.apps.cloche_transport",
        ("delayed",),
        environment="own",
        settings=("ignored",),
        concurrency=10,
    ),
)
