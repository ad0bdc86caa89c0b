"""A plain Celery app, configured by the environment alone; tasks write to a ledger file.

The ledger is outside the broker: one line an effect, appended with O_APPEND.
"""

from __future__ import annotations

import json
import os
import signal
import time

from celery import Celery, Task, current_task

from cloche.broker.celery_hooks import lease_lost

app = Celery("ledger", broker=os.environ["LEDGER_BROKER"])
settings: dict[str, object] = {
    "task_ignore_result": True,
    "task_acks_late": True,
    "broker_connection_retry_on_startup": True,
    "worker_send_task_events": False,
}
app.conf.update(settings | json.loads(os.environ.get("LEDGER_CONF", "{}")))


def write(word: str, number: int) -> None:
    now = time.clock_gettime(time.CLOCK_REALTIME)  # right where a test shifts time.time
    run = current_task.request.id if current_task else "-"
    line = f"{word} {number} {os.getpid()} {now:.3f} {run}\n".encode()
    handle = os.open(os.environ["LEDGER_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


@app.task
def record(number: int, seconds: float = 0.0) -> None:
    write("start", number)
    if seconds:
        time.sleep(seconds)
    write("end", number)


@app.task
def kill_worker(number: int) -> None:
    """Kill the whole worker: this process and, in a pool child, its parent."""
    write("start", number)
    os.killpg(os.getpgid(0), signal.SIGKILL)


@app.task
def kill_child(number: int) -> None:
    """Kill the pool process it runs in."""
    write("start", number)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def tell_redelivered(self: Task, number: int) -> None:
    write(f"redelivered={self.request.delivery_info['redelivered']}", number)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(bind=True)
def ask_lease(self: Task, number: int, seconds: float) -> None:
    """Write whether the lease is lost, before and after some seconds."""
    write(f"before={lease_lost(self)}", number)
    time.sleep(seconds)
    write(f"after={self.request.lease_lost}", number)
