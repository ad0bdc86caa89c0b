"""The soak's tasks: each writes its number to the ledger, its result follows from the number.

A ledger file belongs to one process; its lines are those of the harness' ``Effect``.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import Task, current_task

from cloche import create_app

LEASE = 5.0
#: Queues of one pool each; what names no queue goes to the one they share.
POOLS = ("asyncio", "threads", "prefork", "solo")
SHARED = "default"

app = create_app("soak")
app.conf.result_expires = 1200
app.conf.task_send_sent_event = False  # with it map_delay has Celery build every message
app.conf.broker_transport_options = {**app.conf.broker_transport_options, "lease": LEASE}

_handles: dict[int, int] = {}


def answer(number: int) -> int:
    """The result of a task."""
    return number * 7 + 1


def append(path: Path, line: str) -> None:
    """Append a line to the file of this process."""
    handle = _handles.get(os.getpid())
    if handle is None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        _handles[os.getpid()] = handle
    os.write(handle, f"{line}\n".encode())


def write(word: str, number: int) -> None:
    """Note an effect."""
    directory = Path(os.environ["SOAK_LEDGER"])
    line = f"{word} {number} {os.getpid()} {time.time():.3f} {current_task.request.id}"
    append(directory / f"{os.environ['SOAK_WORKER']}.{os.getpid()}", line)


@app.task(shared=False)
def note(number: int) -> int:
    write("ran", number)
    return answer(number)


@app.task(shared=False)
def work(number: int) -> int:
    """Takes a while."""
    write("ran", number)
    time.sleep(0.02)
    return answer(number)


@app.task(shared=False)
async def wait(number: int) -> int:
    """A coroutine that takes a while."""
    write("ran", number)
    await asyncio.sleep(0.05)
    return answer(number)


@app.task(bind=True, shared=False, max_retries=5)
def again(self: Task, number: int) -> int:
    """Is retried once, a second later."""
    if not self.request.retries:
        write("retried", number)
        raise self.retry(countdown=1)
    write("ran", number)
    return answer(number)


@app.task(shared=False)
def follow(before: int, number: int) -> int:
    """A step of a chain: ``before`` is the result of the number before."""
    if before != answer(number - 1):
        write("wrong", number)
    write("ran", number)
    return answer(number)


@app.task(shared=False)
def gather(parts: list[Any], number: int) -> int:
    """The body of a chord over the numbers before."""
    if parts != [answer(one) for one in range(number - len(parts), number)] or not parts:
        write("wrong", number)
    write("ran", number)
    return answer(number)
