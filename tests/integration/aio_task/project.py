"""A project as people write it: an engine and a client at module level, tasks that use them.

As ``python -m`` it runs its tasks eagerly and prints what they return.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from celery import Celery, current_task
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cloche import async_task, resource

POOL_SIZE = 3


class Point(BaseModel):
    x: int


app = Celery("project", broker=os.environ["PROJECT_BROKER"], backend=os.environ["PROJECT_BROKER"])
app.conf.task_default_queue = os.environ["PROJECT_NAME"]
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 4

engine = create_async_engine(
    os.environ["PROJECT_DATABASE"],
    pool_size=POOL_SIZE,
    max_overflow=0,
    connect_args={"server_settings": {"application_name": os.environ["PROJECT_NAME"]}},
)
http = httpx2.AsyncClient(base_url=os.environ["PROJECT_SITE"])


def note(line: str) -> None:
    with Path(os.environ["PROJECT_LEDGER"]).open("a") as ledger:
        ledger.write(f"{line}\n")


@resource
async def channel() -> AsyncIterator[asyncio.Queue[int]]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    note(f"opened {os.getpid()}")
    yield queue
    await asyncio.sleep(0.01)
    note(f"closed {os.getpid()}")


@async_task(app=app, name="project.work", bind=True)
async def work(self: Any, number: int) -> dict[str, Any]:
    """A row and a request; how many connections this worker's processes have meanwhile."""
    async with engine.begin() as connection:
        row = await connection.execute(
            text("INSERT INTO seen (number, task) VALUES (:n, :t) RETURNING number"),
            {"n": number, "t": self.request.id},
        )
        stored = row.scalar_one()
        count = await connection.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"),
            {"name": os.environ["PROJECT_NAME"]},
        )
        connections = count.scalar_one()
    reply, _ = await asyncio.gather(http.get(f"/{number}"), (await channel()).put(number))
    return {
        "number": int(reply.text) if stored == number else -1,
        "connections": connections,
        "pid": os.getpid(),
        "right": self.request.id == current_task.request.id,
    }


@async_task(app=app, name="project.flaky", bind=True, max_retries=3)
async def flaky(self: Any, wanted: int) -> list[Any]:
    """Fails ``wanted`` times; tells its progress meanwhile."""
    await asyncio.sleep(0)
    if self.request.retries < wanted:
        raise self.retry(countdown=0)
    self.update_state(state="PROGRESS", meta={"done": 1})
    inner = await asyncio.create_task(_state_of(self))
    return [self.request.retries, inner]


@async_task(
    app=app,
    name="project.stumbling",
    bind=True,
    autoretry_for=(OSError,),
    default_retry_delay=0,
    pydantic=True,
)
async def stumbling(self: Any, point: Point) -> Point:
    """Fails twice with an error it is retried for."""
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise OSError("not yet")
    return Point(x=point.x + await add.coroutine(self.request.retries, 0))


async def _state_of(task: Any) -> str:
    return str(await asyncio.to_thread(lambda: task.AsyncResult(task.request.id).state))


@async_task(app=app, name="project.slow")
async def slow(seconds: float) -> str:
    """Tidies up with awaits, whatever ends it."""
    note("started")
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.05)
        return "limited"
    finally:
        await asyncio.sleep(0.05)
        note("tidied up")
    return "not ended"


@async_task(app=app, name="project.family")
async def family() -> int:
    """Sends a child and waits for it, on workers that can run both at once."""
    child = await add.adelay(1, 2)
    return int(await child.aget(timeout=20))


@async_task(app=app, name="project.add")
async def add(x: int, y: int) -> int:
    return x + y


if __name__ == "__main__":
    app.finalize()  # Celery binds a task at its first use, which must not be in eight threads
    with ThreadPoolExecutor(8) as threads:
        sent = list(threads.map(lambda number: work.apply([number]), range(500)))
    print(json.dumps([result.get() for result in sent]))
