"""A hardened application whose tasks tell what they see; run as ``celery -A`` would."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Task

from cloche import async_task
from cloche.app import create_app
from cloche.settings import load

app = create_app("probe", load().settings)
if "PROBE_MAX_RETRIES" in os.environ:  # as an application that has its own opinion
    app.conf.broker_connection_max_retries = int(os.environ["PROBE_MAX_RETRIES"])
if "PROBE_HEARTBEAT" in os.environ:  # AMQP only
    app.conf.broker_heartbeat = float(os.environ["PROBE_HEARTBEAT"])
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


@app.task(name="tasks.probe.stamp")
def stamp(ledger: str, text: str) -> None:
    """Write down when it runs."""
    with Path(ledger).open("a") as file:
        file.write(f"{text} {time.time()}\n")


@app.task(name="tasks.probe.again", bind=True, max_retries=3)
def again(self: Task, ledger: str, countdown: float) -> None:
    """Write down when it runs, twice with a wait between."""
    stamp(ledger, str(self.request.retries))
    if self.request.retries < 2:
        raise self.retry(countdown=countdown)


@async_task(name="tasks.probe.doze")
async def doze(ledger: str, text: str, seconds: float) -> None:
    """A coroutine that writes one line when it starts, one when it ends."""
    _write(ledger, f"start {text}")
    await asyncio.sleep(seconds)
    _write(ledger, f"end {text}")


def _write(ledger: str, line: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{line}\n")


_kept: list[bytearray] = []


@app.task(name="tasks.probe.grow")
def grow(mebibytes: int) -> int:
    """Take that much memory and keep it."""
    if mebibytes:
        _kept.append(bytearray(b"x" * (mebibytes * 1024**2)))
    return mebibytes
