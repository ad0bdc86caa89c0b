"""Schedules of the settings, put among the application's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.schedules import crontab, schedule

from cloche.settings.model import Settings
from cloche.settings.schedule import ScheduleSettings


def add_schedules(app: Celery, settings: Settings) -> None:
    """Put them into ``beat_schedule``. Of one name the settings' counts, as with everything
    else that settings and application both say; one that is not enabled takes it out."""
    ours = settings.beat.schedules
    if ours:
        own = dict(app.conf.beat_schedule or {})
        app.conf.beat_schedule = {
            **{name: entry for name, entry in own.items() if name not in ours},
            **{name: beat_entry(app, one) for name, one in ours.items() if one.enabled},
        }


def beat_entry(app: Celery, one: ScheduleSettings) -> dict[str, Any]:
    """A schedule as ``beat_schedule`` has it."""
    options = {"queue": one.queue, "expires": one.expires}
    return {
        "task": one.task,
        "schedule": schedule_of(app, one),
        "args": one.args,
        "kwargs": dict(one.kwargs),
        "options": {key: value for key, value in options.items() if value is not None},
    }


def schedule_of(app: Celery, one: ScheduleSettings) -> Any:
    """When it runs, as Celery says it."""
    if one.cron is None:
        return schedule(one.every, app=app)
    minute, hour, day, month, weekday = one.cron.split(" ")
    return crontab(minute, hour, weekday, day, month, app=app)


def unknown_tasks(app: Celery) -> dict[str, str]:
    """Schedule -> task, of those that name a task this application has not registered."""
    entries: Mapping[str, Any] = app.conf.beat_schedule or {}
    named = {
        name: str(entry["task"] if isinstance(entry, Mapping) else entry.task)
        for name, entry in entries.items()
    }
    return {name: task for name, task in named.items() if task not in app.tasks}
