"""The publisher, run in a contestant's environment: ``python -m bench.drive JOB --app …``.

Prints one JSON object: ``seconds`` and ``cpu`` (seconds) of the publishing alone, after warm-up;
empty when the library cannot do this job.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import json
import time
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

from bench import marks

WARM_UP = 50  # jobs before the clock starts; they leave no mark


async def _call(function: Any, *arguments: Any) -> None:
    """Call it, plain or asynchronous alike. One await more per call: below a microsecond."""
    outcome = function(*arguments)
    if inspect.isawaitable(outcome):
        await outcome


async def fill(app: ModuleType, slots: range, _: float) -> None:
    """Queue no-op jobs, the fastest way the library has."""
    await (many if hasattr(app, "publish_many") else one)(app, slots, 0)


async def one(app: ModuleType, slots: range, _: float) -> None:
    """Publish no-op jobs with one ordinary call each."""
    for slot in slots:
        await _call(app.publish, slot)


async def many(app: ModuleType, slots: range, _: float) -> None:
    """Publish no-op jobs through the batch call."""
    await _call(app.publish_many, slots)


async def sleeps(app: ModuleType, slots: range, seconds: float) -> None:
    """Queue jobs that sleep."""
    await _call(app.publish_sleeps, slots, seconds)


async def paced(app: ModuleType, slots: range, seconds: float) -> None:
    """Publish a job each ``seconds``, noting when."""
    for slot in slots:
        marks.send(slot)
        await _call(app.publish, slot)
        await asyncio.sleep(seconds)


_JOBS = {"fill": fill, "one": one, "many": many, "sleeps": sleeps, "paced": paced}


async def _drive(job: str, app: ModuleType, slots: range, seconds: float, warm: bool) -> None:
    if job == "many" and not hasattr(app, "publish_many"):
        print("{}")
        return
    async with AsyncExitStack() as stack:
        if hasattr(app, "session"):
            await stack.enter_async_context(app.session())
        if hasattr(app, "connect"):
            await app.connect()
        for _ in range(WARM_UP if warm else 0):
            await _call(app.publish, -1)
        started, cpu = time.perf_counter(), time.process_time()
        await _JOBS[job](app, slots, seconds)
        figures = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    print(json.dumps(figures))


def main() -> None:
    """Import the app and publish."""
    parser = argparse.ArgumentParser(prog="python -m bench.drive", description=__doc__)
    parser.add_argument("job", choices=sorted(_JOBS))
    parser.add_argument("--app", required=True, help="module, e.g. bench.apps.celery")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="slot of the first job")
    parser.add_argument("--seconds", type=float, default=0.0, help="of a sleep or between jobs")
    parser.add_argument("--warm", action="store_true", help="publish unmarked jobs first")
    asked = parser.parse_args()
    app = importlib.import_module(asked.app)
    slots = range(asked.first, asked.first + asked.count)
    asyncio.run(_drive(asked.job, app, slots, asked.seconds, asked.warm))


if __name__ == "__main__":
    main()
