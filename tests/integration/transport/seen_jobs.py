"""The pool tests' tasks, and one that tells what a task sees of its message."""

from __future__ import annotations

import os
from typing import Any

from cloche.worker.events import collect_events
from cloche.worker.receiver import receive_plainly
from tests.integration.aio_pool.jobs import app, job

if os.environ["JOBS_POOL"].startswith("plain"):
    collect_events(app)
    receive_plainly(app)

#: What differs from message to message, whoever carries it.
_PASSING = ("delivery_tag", "correlation_id", "reply_to", "origin")


def seen(request: Any) -> str:
    """A request's fields in ASCII: they may be what no result can carry."""
    properties = {k: v for k, v in (request.properties or {}).items() if k not in _PASSING}
    properties["delivery_info"] = {**(properties.get("delivery_info") or {}), "routing_key": ""}
    return ascii(
        {
            "headers": _sorted(request.headers),
            "properties": _sorted(properties),
            "delivery_info": _sorted({**request.delivery_info, "routing_key": ""}),
            "args": request.args,
            "kwargs": request.kwargs,
            "eta": request.eta,
            "retries": request.retries,
        }
    )


def _sorted(fields: dict[str, Any] | None) -> Any:
    return fields and sorted(fields.items())


@job(bind=True, name="see")
async def see(self: Any, *args: Any, **kwargs: Any) -> str:
    return seen(self.request)


@job(bind=True, name="see_retry", max_retries=3)
async def see_retry(self: Any, *args: Any) -> str:
    """What the second retry sees, after a redelivered first attempt or not."""
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return seen(self.request)


@job(bind=True, name="pass_on")
async def pass_on(self: Any, task_id: str) -> None:
    """Send one's own headers on."""
    see.apply_async((), task_id=task_id, headers=self.request.headers, countdown=0.1)


__all__ = ["app"]
