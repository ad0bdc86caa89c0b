"""The scheduler, as one process."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from pathlib import Path
from typing import Any

from celery import signals

from cloche.app.outage_reporter import report_outages
from cloche.app.schedules import add_schedules, unknown_tasks
from cloche.launch import collector
from cloche.launch.beat.scheduler import scheduler_class
from cloche.launch.environment import Environment
from cloche.process import table
from cloche.process.heartbeat import DIRECTORY, PERIOD, Heartbeat, HeartbeatFile
from cloche.process.identity import Identity
from cloche.process.systemd import SystemdWatchdog, notify
from cloche.settings.families import FAMILY_MODULES

logger = logging.getLogger("cloche.beat")

_NODE = f"beat@{socket.gethostname()}"


def run_beat(environment: Environment, *, loglevel: str = "INFO") -> None:
    """Run Celery's beat in this process until it is told to stop (SystemExit)."""
    app, settings = environment.app, environment.settings
    status = Status(settings.run_dir.absolute())

    def ready(**_: Any) -> None:
        for name, task in unknown_tasks(app).items():
            if not task.startswith("cloche."):  # ours are not imported here
                logger.warning("schedule %s names the task %s, which is not registered", name, task)
        notify("READY=1")

    signals.beat_init.connect(ready, weak=False, dispatch_uid="cloche-beat-ready")
    (settings.run_dir / DIRECTORY).mkdir(mode=0o700, parents=True, exist_ok=True)
    # It sends tasks by name; importing Cloche's own would take a quarter of its start.
    app.conf.include = [name for name in app.conf.include if name not in FAMILY_MODULES.values()]
    app.loader.import_default_modules()
    app.finalize()
    add_schedules(app, settings)  # once more: modules may have added theirs meanwhile
    report_outages(app)
    collector.resume()
    scheduler = scheduler_class(app, settings, status.turn, status.longest)
    try:
        app.Beat(loglevel=loglevel, quiet=True, scheduler_cls=scheduler).run()
    finally:
        notify("STOPPING=1")
        status.end()


class Status:
    """Tells the supervisor what the scheduler does, and everybody here that it turns."""

    def __init__(self, directory: Path) -> None:
        self._file = HeartbeatFile(directory, _NODE)
        self._life = SystemdWatchdog()
        self._identity = Identity.own()
        self._told = ""
        self._pulse_due = 0.0

    @property
    def longest(self) -> float:
        """Seconds between two turns at most."""
        return min(PERIOD, (self._life.period or PERIOD) / 2)

    def turn(self, words: str) -> None:
        """The scheduler made a turn, and ``words`` is what it does."""
        self._life.give()
        if words != self._told:
            self._told = words
            notify(f"STATUS={words}")
        now = time.monotonic()
        if now >= self._pulse_due:
            self._pulse_due = now + PERIOD / 2
            with contextlib.suppress(OSError):
                self._file.write(self._pulse(now, connected="waits" not in words))

    def end(self) -> None:
        """There is no scheduler here any more."""
        self._file.remove()

    def _pulse(self, now: float, *, connected: bool) -> Heartbeat:
        return Heartbeat(
            node=_NODE,
            pid=self._identity.pid,
            started=self._identity.started,
            boot=table.boot_id(),
            at=now,
            turned=now,
            connected=connected,
            queues=(),
            pool="beat",
            slots=0,
            active=0,
            reserved=0,
            processed=0,
        )
