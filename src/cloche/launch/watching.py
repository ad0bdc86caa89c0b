"""``cloche up`` while everything runs: it watches, and tells that it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module

from celery import Celery

from cloche.launch.watchdog import Watchdog
from cloche.process.notify import notify
from cloche.process.supervisor import Supervisor
from cloche.process.watched import SignOfLife
from cloche.settings import Settings

#: Seconds between two words about how many processes are ready.
_STATUS_EVERY = 1.0


async def watched(
    app: Celery, settings: Settings, supervisor: Supervisor, say: Callable[[str], None]
) -> None:
    """Return when the supervisor's stop has been completed.

    Meanwhile deaf workers are found, changed code is loaded (``reload.enabled``), and a service
    manager above us is told ``READY=1``, how many processes are ready, and ``WATCHDOG=1`` as
    long as this loop turns.
    """
    notify("READY=1")
    tasks = [
        asyncio.create_task(Watchdog(app, settings, supervisor, say).run()),
        asyncio.create_task(_tell(supervisor)),
    ]
    if settings.reload.enabled:  # an extra, imported by who wants it
        reloading = import_module("cloche.launch.reloading")
        tasks.append(asyncio.create_task(reloading.Reloader(settings, supervisor, say).run()))
    try:
        await supervisor.run()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(supervisor: Supervisor) -> None:
    life, told = SignOfLife(), ""
    pause = min(_STATUS_EVERY, (life.period or _STATUS_EVERY) / 2)
    while True:
        life.give()
        status = supervisor.status()
        ready = sum(one.state == "ready" for one in status)
        stopping = any(one.state == "stopping" for one in status)
        words = "stopping" if stopping else f"{ready} of {len(status)} processes are ready"
        if words != told:
            told = words
            notify(f"STOPPING=1\nSTATUS={words}" if stopping else f"STATUS={words}")
        await asyncio.sleep(pause)
