"""Further tasks of the ledger app, for the tests of servers: retries and results."""

from __future__ import annotations

from typing import Any

from celery import Task

from tests.integration.transport.ledger_app import app, write

__all__ = ["again", "double"]


@app.task(bind=True, max_retries=2)
def again(self: Task, number: int) -> None:
    """Retry once, after half a second."""
    write(f"try-{self.request.retries}", number)
    if not self.request.retries:
        raise self.retry(countdown=0.5)


@app.task(ignore_result=False)
def double(number: int) -> Any:
    write("double", number)
    return 2 * number
