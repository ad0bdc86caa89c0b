"""Tasks that sleep, and two ways to wedge a worker on purpose."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from celery import signals

from cloche import create_app

app = create_app("health")


@app.task(name="tasks.health.note")
def note(ledger: str, text: str, seconds: float = 0) -> None:
    """One line when it starts, one when it ends."""
    with Path(ledger).open("a") as file:
        file.write(f"start {text}\n")
    time.sleep(seconds)
    with Path(ledger).open("a") as file:
        file.write(f"end {text}\n")


@signals.worker_ready.connect
def wedge_on_demand(sender: object, **_: object) -> None:
    """Block the consumer's thread for ever as soon as a file named ``wedge`` appears."""
    hub = sender.hub  # type: ignore[attr-defined]

    def look() -> None:
        if Path("wedge").exists():
            os.rename("wedge", "wedged")
            lock = threading.Lock()
            lock.acquire()
            wedged_on_purpose(lock)

    hub.call_repeatedly(0.2, look)


def wedged_on_purpose(lock: threading.Lock) -> None:
    """Its name is looked for in the stacks."""
    lock.acquire()
