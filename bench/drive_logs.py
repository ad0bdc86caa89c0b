"""A process that logs, run in a contestant's environment: ``python -m bench.drive_logs``.

The app offers ``log(**fields)`` (bench/apps/logs_case.py has the fields) and ``finish()``, which
sends what is still in memory; one without a log ``rows(count)`` and ``write(rows)``. Prints one
JSON object: rows per second from the first call to the last row; what a call took, in a thread
and in a coroutine; CPU of this process per record.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import time
from collections.abc import Callable, Iterable
from types import ModuleType

import sqlalchemy

from bench.apps.logs_case import fields
from bench.figures import Figures, percentile

WARM_UP = 40  # batches of 25 records before the clock starts, so that each process has had some
_DEADLINE = 170.0  # seconds until the last row must be there


class Rows:
    """How many there are."""

    def __init__(self, url: str) -> None:
        url = url.replace("postgresql:", "postgresql+psycopg:", 1)
        self._engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")

    def count(self) -> int:
        query = sqlalchemy.text("SELECT count(*) FROM cloche_log_records")
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def wait(self, count: int) -> None:
        """Until so many."""
        deadline = time.monotonic() + _DEADLINE
        while self.count() < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.count()} rows of {count} after {_DEADLINE:g} s")
            time.sleep(0.02)


def logged(log: Callable[..., object], numbers: Iterable[int]) -> list[int]:
    """Log them; nanoseconds of each call."""
    clock, spent = time.perf_counter_ns, []
    for number in numbers:
        given = fields(number)
        before = clock()
        log(**given)
        spent.append(clock() - before)
    return spent


async def logged_in_loop(log: Callable[..., object], numbers: Iterable[int]) -> list[int]:
    """The same from coroutines, the loop given its turn after each hundred."""
    spent: list[int] = []
    batch: list[int] = []
    for number in numbers:
        batch.append(number)
        if len(batch) == 100:
            spent += logged(log, batch)
            batch.clear()
            await asyncio.sleep(0)
    return spent + logged(log, batch)


def measure(app: ModuleType, count: int) -> Figures:
    """Half of the records from a thread, half from a loop, in one go."""
    rows = Rows(os.environ["BENCH_DATABASE"])
    if hasattr(app, "rows"):
        return _written(app, count)
    for _ in range(WARM_UP):
        logged(app.log, range(25))
        app.finish()
    rows.wait(WARM_UP * 25)
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    plain = logged(app.log, range(count // 2))
    looped = asyncio.run(logged_in_loop(app.log, range(count // 2, count)))
    app.finish()
    producer = time.process_time() - cpu
    rows.wait(WARM_UP * 25 + count)
    seconds = time.perf_counter() - began
    return {
        "rate": count / seconds,
        "seconds": seconds,
        "p50_us": percentile(plain, 0.5) / 1000,
        "p99_us": percentile(plain, 0.99) / 1000,
        "async_p50_us": percentile(looped, 0.5) / 1000,
        "async_p99_us": percentile(looped, 0.99) / 1000,
        "producer_cpu_us": producer / count * 1e6,
        "warm_up": WARM_UP * 25,
    }


def _written(app: ModuleType, count: int) -> Figures:
    """Rows are made beforehand: they are the floor, not a part of it."""
    rows = app.rows(count)
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    app.write(rows)
    seconds, producer = time.perf_counter() - began, time.process_time() - cpu
    return {
        "rate": count / seconds,
        "seconds": seconds,
        "producer_cpu_us": producer / count * 1e6,
        "warm_up": 0,
    }


def main() -> None:
    """Import the app and log."""
    parser = argparse.ArgumentParser(prog="python -m bench.drive_logs", description=__doc__)
    parser.add_argument("--app", required=True, help="module, e.g. bench.apps.logs_cloche")
    parser.add_argument("--count", type=int, required=True)
    asked = parser.parse_args()
    print(json.dumps(measure(importlib.import_module(asked.app), asked.count)))


if __name__ == "__main__":
    main()
