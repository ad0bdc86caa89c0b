"""The scheduler, as one process."""

from __future__ import annotations

from typing import Any

from celery import signals

from cloche.app import FAMILY_MODULES
from cloche.launch import collector
from cloche.launch.environment import Environment
from cloche.process.notify import notify


def run_beat(environment: Environment, *, loglevel: str = "INFO") -> None:
    """Run Celery's beat in this process until it is told to stop (SystemExit)."""

    def ready(**_: Any) -> None:
        notify("READY=1")

    signals.beat_init.connect(ready, weak=False, dispatch_uid="cloche-beat-ready")
    environment.settings.run_dir.mkdir(parents=True, exist_ok=True)
    # It sends tasks by name; importing Cloche's own would take a quarter of its start.
    app = environment.app
    app.conf.include = [name for name in app.conf.include if name not in FAMILY_MODULES.values()]
    collector.resume()
    app.Beat(loglevel=loglevel, quiet=True).run()
