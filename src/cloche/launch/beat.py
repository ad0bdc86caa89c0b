"""The scheduler, as one process."""

from __future__ import annotations

from typing import Any

from celery import signals

from cloche.launch.environment import Environment
from cloche.process.notify import notify


def run_beat(environment: Environment, *, loglevel: str = "INFO") -> None:
    """Run Celery's beat in this process until it is told to stop (SystemExit)."""

    def ready(**_: Any) -> None:
        notify("READY=1")

    signals.beat_init.connect(ready, weak=False, dispatch_uid="cloche-beat-ready")
    environment.settings.run_dir.mkdir(parents=True, exist_ok=True)
    environment.app.Beat(loglevel=loglevel, quiet=True).run()
