"""Execution logs: Cloche's, the copied design, rows one by one, and the floor under them all."""

from __future__ import annotations

from bench.contestant import Contestant

_BOTH = ("logs", "logs-sqlite")
_CLOCHE = ("cloche", "worker", "-A", "bench.apps.logs_cloche", "-Q", "{queue}", "-l", "WARNING")


def _cloche(name: str, *pool: str, **variables: str) -> Contestant:
    return Contestant(
        name,
        (*_CLOCHE, *pool),
        "bench.apps.logs_cloche",
        _BOTH,
        environment="own",
        settings=("ignored",),
        variables=variables,
    )


def _alone(name: str, app: str, *benchmarks: str, share: float = 1.0) -> Contestant:
    """Without a worker."""
    return Contestant(
        name,
        (),
        f"bench.apps.{app}",
        benchmarks,
        environment="own",
        settings=("ignored",),
        share=share,
    )


_COPIED = ("celery", "-A", "bench.apps.logs_copied", "worker", "-c", "2", "-Q", "{queue}")

CONTESTANTS = (
    _alone("bare COPY", "logs_bare", "logs"),
    _alone("bare executemany", "logs_bare", "logs-sqlite"),
    _cloche("cloche prefork -c 2", "-P", "prefork", "-c", "2"),
    _cloche("cloche asyncio", "-P", "asyncio", "-c", "100"),
    _cloche("cloche durable", "-P", "prefork", "-c", "2", BENCH_DURABLE="1"),
    _cloche("cloche on stock redis", "-c", "2", CLOCHE_BROKER__TRANSPORT="stock"),
    Contestant(
        "copied design, prefork -c 2",
        _COPIED,
        "bench.apps.logs_copied",
        _BOTH,
        environment="own",
        settings=("ignored",),
        share=0.05,
    ),
    _alone("an INSERT each", "logs_rows", *_BOTH, share=0.02),
)
