"""An application that brings a scheduler of its own."""

from __future__ import annotations

import os

from celery.beat import PersistentScheduler, ScheduleEntry

from tests.integration.beat.app import app


class Counting(PersistentScheduler):
    """Says each time that it decided to send: what Cloche puts before it must call it."""

    def is_due(self, entry: ScheduleEntry) -> object:
        """As Celery's, told."""
        due = super().is_due(entry)
        if due.is_due:
            print(f"pid {os.getpid()} decided on {entry.name}", flush=True)
        return due


app.conf.beat_scheduler = "tests.integration.beat.own:Counting"
