"""Tasks whose needs are away."""

from __future__ import annotations

from typing import Any

from celery import Task

from cloche import Resilience, async_task, create_app, resilient

app = create_app("resilient")


def give_less(error: Exception, number: int) -> list[object]:
    return ["fallback", type(error).__name__, number]


async def agive_less(error: Exception, number: int) -> list[object]:
    return give_less(error, number)


@app.task
@resilient(retries=2, delay=0, fallback=give_less)
def degraded(number: int) -> list[object]:
    raise ConnectionError("away")


@async_task(app=app)
@resilient(retries=1, delay=0, fallback=agive_less)
async def adegraded(number: int) -> list[object]:
    raise TimeoutError("away")


@app.task(bind=True)
@resilient(retries=1, delay=0, fallback=give_less)
def bound(self: Task, number: int) -> list[object]:
    assert self.request.retries <= 1
    raise ConnectionError("away")


@app.task(bind=True, resilient=Resilience(retries=2, delay=0))
def by_option(self: Task, number: int) -> Any:
    if self.request.retries < 2:
        raise ConnectionError("away")
    return "third time"


@app.task
@resilient(retries=1, delay=0, fallback=give_less)
def wrong() -> None:
    raise ValueError("not a connection")


@app.task
@resilient(retries=1, delay=0)
def given_up() -> None:
    raise ConnectionError("gone for good")


@app.task(name="tasks.named.well", time_limit=30)
def well() -> None:
    """Its name tells its family."""
