"""The application of the tests: what a project with Cloche's download family looks like."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery, Task

from cloche.settings import Settings, load
from cloche.settings.of_app import state_of

settings: Settings = load().settings
_url = settings.broker.url.get_secret_value() if settings.broker.url else "memory://"

app = Celery("sample", broker=_url, backend=_url, include=["cloche.tasks.download"])
app.conf.update(
    worker_send_task_events=True,
    task_send_sent_event=True,
    task_track_started=True,
    result_extended=True,
    task_routes={"cloche.download.*": {"queue": "download_queue"}},
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
state_of(app).settings = settings


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def fail(why: str) -> None:
    raise ValueError(why)


@app.task(bind=True)
def climb(self: Task[..., Any], steps: int, pause: float) -> str:
    """Reports its progress as it goes."""
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"done": step, "of": steps})
        time.sleep(pause)
    return "arrived"
