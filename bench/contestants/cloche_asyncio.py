"""Cloche's worker with its asyncio pool, its jobs coroutines."""

from __future__ import annotations

from bench.contestant import SETTINGS, Contestant, Setting

_APP = "bench.apps.cloche_asyncio"


def _asyncio(
    name: str,
    concurrency: int,
    benchmarks: tuple[str, ...],
    *,
    copies: int = 1,
    share: float = 1.0,
    settings: tuple[Setting, ...] = SETTINGS,
) -> Contestant:
    """As contestants/cloche.py starts the other pools; the app says whether events are on."""
    pool = ("-P", "asyncio", "-c", "{concurrency}")
    return Contestant(
        name=name,
        worker=("cloche", "worker", "-A", _APP, *pool, "-Q", "{queue}", "-l", "WARNING"),
        app=_APP,
        benchmarks=benchmarks,
        environment="own",
        settings=settings,
        concurrency=concurrency,
        copies=copies,
        share=share,
    )


CONTESTANTS = (
    _asyncio("cloche asyncio 2 × 100", 100, ("drain",), copies=2, share=5),
    _asyncio("cloche asyncio 1 × 100", 100, ("drain", "latency", "start"), share=3),
    _asyncio("cloche asyncio 1 × 1000", 1000, ("sleepers", "latency-busy")),
    _asyncio("cloche asyncio -c 1", 1, ("idle",)),
)
