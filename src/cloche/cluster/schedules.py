"""Schedules as they stand: when each ran, when it runs next, what was missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab

from cloche.broker.baton import Server, bearer_of, server_of
from cloche.broker.schedule_runs import Run, Runs
from cloche.settings import Settings

#: Missed runs counted at most.
MOST = 1000


@dataclass(frozen=True, slots=True)
class ScheduleSeen:
    """One schedule. Times are aware; ``last`` None: it never ran, ``next`` None: not known.

    ``missed`` counts the runs that nobody has sent and that are later than ``beat.late``.
    """

    name: str
    task: str
    when: str
    queue: str | None
    source: str
    next: datetime | None
    last: datetime | None
    missed: int


@dataclass(frozen=True, slots=True)
class SchedulesSeen:
    """All schedules, and the scheduler that sends them (None: nobody; unknown off Redis)."""

    schedules: tuple[ScheduleSeen, ...]
    scheduler: str | None
    known: bool


def beat_name(app: Celery, settings: Settings) -> str:
    """The name under which schedulers exclude each other, as a key of ours ends."""
    return f"beat:{settings.beat.name or app.main or settings.app}"


def next_run(schedule: Any, last: datetime) -> datetime:
    """When a run is due that comes after ``last``; of any of Celery's kinds of schedule."""
    if isinstance(schedule, crontab):
        start, delta, _ = schedule.remaining_delta(last)
        found: datetime = start + delta
        return found
    if hasattr(schedule, "run_every"):
        return last + timedelta(seconds=schedule.seconds)
    due: datetime = schedule.now() + schedule.remaining_estimate(last)
    return due


def missed_runs(schedule: Any, last: datetime, until: datetime) -> int:
    """Runs due after ``last`` and before ``until``, counted up to :data:`MOST`."""
    if hasattr(schedule, "run_every"):
        found = int((until - last).total_seconds() // max(schedule.seconds, 1e-3))
        return max(0, min(found, MOST))
    count = 0
    while count < MOST and (due := next_run(schedule, last)) < until and due > last:
        count, last = count + 1, due
    return count


def schedules_seen(app: Celery, settings: Settings) -> SchedulesSeen:
    """Read them now. Raises the connection's own errors."""
    entries = {
        name: ScheduleEntry(**{**entry, "name": name, "app": app})
        for name, entry in app.conf.beat_schedule.items()
        if isinstance(entry, Mapping)
    }
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        server = server_of(connection)
        runs, bearer = _state(server, beat_name(app, settings)) if server else ({}, None)
    now, late = app.now(), timedelta(seconds=settings.beat.late)
    seen = tuple(
        _seen(entry, runs.get(name), now - late, settings) for name, entry in entries.items()
    )
    return SchedulesSeen(seen, bearer, server is not None)


def _state(server: Server, name: str) -> tuple[dict[str, Run], str | None]:
    return Runs(server, name).read(), bearer_of(server, name)


def _seen(
    entry: ScheduleEntry, run: Run | None, until: datetime, settings: Settings
) -> ScheduleSeen:
    return ScheduleSeen(
        name=entry.name,
        task=entry.task,
        when=describe(entry.schedule),
        queue=entry.options.get("queue"),
        source="settings" if entry.name in settings.beat.schedules else "application",
        next=next_run(entry.schedule, run.at) if run else None,
        last=run.at if run and run.count else None,
        missed=missed_runs(entry.schedule, run.at, until) if run else 0,
    )


def describe(schedule: Any) -> str:
    """``every 300 s``, ``cron */5 * * * *``; others as Celery shows them."""
    if isinstance(schedule, crontab):
        fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        return "cron " + " ".join(str(getattr(schedule, f"_orig_{field}")) for field in fields)
    if hasattr(schedule, "run_every"):
        return f"every {schedule.seconds:g} s"
    return str(schedule)
