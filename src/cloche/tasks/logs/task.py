"""The Celery task of this family: one batch of the execution log."""

from __future__ import annotations

import asyncio
from typing import Any

from celery import Task
from celery.exceptions import Reject

from cloche.aio.task import async_task
from cloche.backoff import Backoff
from cloche.errors import DatabaseError
from cloche.logs.write.coalescer import coalescer
from cloche.logs.write.shipper import WRITE
from cloche.settings.of_app import settings_of

#: Seconds until a batch is tried again while the database is away.
_AGAIN = Backoff(first=1, factor=2, limit=20, jitter=0.3)
#: Seconds a batch is held before it goes back to its queue, on transports that would keep a
#: delayed one in the worker's memory.
_HOLD = 2.0
_FOR_EVER = 2**31


@async_task(bind=True, name=WRITE, acks_late=True, ignore_result=True)
async def write(self: Any, lines: str) -> None:
    """Store lines of the execution log; safe to deliver twice.

    Acknowledged when they are committed; while the database is away the broker keeps them.
    """
    batch = [line for line in lines.encode(errors="replace").split(b"\n") if line]
    again = self.request.retries > 0 or bool(self.request.delivery_info.get("redelivered"))
    try:
        await coalescer(settings_of(self.app)).write(batch, careful=again)
    except DatabaseError as error:
        await _later(self, error)


async def _later(task: Task, error: DatabaseError) -> None:
    """Have the broker keep the batch; raises in any case."""
    if task.request.called_directly:
        raise error
    if not str(task.app.conf.broker_write_url or "").startswith("cloche+"):
        await asyncio.sleep(_HOLD)
        raise Reject(str(error), requeue=True) from error
    wait = _AGAIN.delay(task.request.retries + 1)
    try:
        raise task.retry(exc=error, countdown=wait, max_retries=_FOR_EVER)
    except Reject:  # it could not be sent again, and this one must not be lost
        raise Reject(str(error), requeue=True) from error
