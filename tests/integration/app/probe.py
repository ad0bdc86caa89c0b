"""A hardened application whose tasks tell what they see; run as ``celery -A`` would."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Task

from cloche.app import create_app
from cloche.settings import load

app = create_app("probe", load().settings)
if "PROBE_MAX_RETRIES" in os.environ:  # as an application that has its own opinion
    app.conf.broker_connection_max_retries = int(os.environ["PROBE_MAX_RETRIES"])
app.conf.beat_schedule = {"tick": {"task": "tasks.probe.limits", "schedule": 0.2}}


@app.task(name="tasks.probe.limits", bind=True)
def limits(self: Task) -> dict[str, Any]:
    """What this task really has on the worker that runs it."""
    return {
        "max_retries": self.max_retries,
        "retry_delay": self.default_retry_delay,
        "timelimit": self.request.timelimit,
        "acks_late": self.acks_late,
        "reject": self.reject_on_worker_lost,
        "retry": self.retry_on_worker_lost,
        "pid": os.getpid(),
        "utc_offset": self.app.now().utcoffset().total_seconds(),
    }


@app.task(name="tasks.probe.note")
def note(ledger: str, text: str, seconds: float = 0) -> None:
    """Write one line when it starts, one when it ends."""
    with Path(ledger).open("a") as file:
        file.write(f"start {text}\n")
    time.sleep(seconds)
    with Path(ledger).open("a") as file:
        file.write(f"end {text}\n")


@app.task(name="tasks.probe.kill_self")
def kill_self(ledger: str) -> None:
    with Path(ledger).open("a") as file:
        file.write("start\n")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="tasks.probe.hang")
def hang() -> None:
    time.sleep(60)


_kept: list[bytearray] = []


@app.task(name="tasks.probe.grow")
def grow(mebibytes: int) -> int:
    """Take that much memory and keep it."""
    if mebibytes:
        _kept.append(bytearray(b"x" * (mebibytes * 1024**2)))
    return mebibytes
