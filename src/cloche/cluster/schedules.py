"""Schedules as they stand: when each ran, when it runs next, what was missed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab
from kombu import Connection

from cloche.broker.connection.probe import reach
from cloche.broker.leader_lock import LockServer, holder_of, server_of
from cloche.broker.schedule_runs import Runs, ScheduledRun
from cloche.records import ScheduleSeen, SchedulesSeen
from cloche.settings import Settings

#: Default queues that tell nothing of an application: Celery's, and that of ``create_app``.
_USUAL = ("celery", "default")
#: Missed runs counted at most.
MAX_MISSED = 1000


def beat_name(app: Celery, settings: Settings) -> str:
    """The name under which schedulers exclude each other, as a key of ours ends.

    Many applications are called ``tasks`` or ``app``. Two that share a broker have queues of
    their own, or they would take each other's tasks.
    """
    if settings.beat.name:
        return f"beat:{settings.beat.name}"
    queue = app.conf.task_default_queue
    return f"beat:{app.main or settings.app}" + ("" if queue in _USUAL else f":{queue}")


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
    """Runs due after ``last`` and before ``until``, counted up to :data:`MAX_MISSED`."""
    if hasattr(schedule, "run_every"):
        found = int((until - last).total_seconds() // max(schedule.seconds, 1e-3))
        return max(0, min(found, MAX_MISSED))
    count = 0
    while count < MAX_MISSED and (due := next_run(schedule, last)) < until and due > last:
        count, last = count + 1, due
    return count


def schedules_seen(
    app: Celery, settings: Settings, connection: Connection | None = None
) -> SchedulesSeen:
    """Read them now, through ``connection`` if there is one. Raises the connection's own errors."""
    entries = {
        name: ScheduleEntry(**{**entry, "name": name, "app": app})
        for name, entry in app.conf.beat_schedule.items()
        if isinstance(entry, Mapping)
    }
    with nullcontext(connection) if connection else app.connection_for_read() as used:
        server = server_of(reach(used))
        runs, holder = _state(server, beat_name(app, settings)) if server else ({}, None)
    now = app.now()
    seen = tuple(_seen(entry, runs.get(name), now, settings) for name, entry in entries.items())
    return SchedulesSeen(seen, holder, server is not None)


def _state(server: LockServer, name: str) -> tuple[dict[str, ScheduledRun], str | None]:
    return Runs(server, name).read(), holder_of(server, name)


def _seen(
    entry: ScheduleEntry, run: ScheduledRun | None, now: datetime, settings: Settings
) -> ScheduleSeen:
    # Without a run that is known, only the clock tells when a schedule is due.
    last = run.at if run else now if isinstance(entry.schedule, crontab) else None
    until = now - timedelta(seconds=settings.beat.late)
    return ScheduleSeen(
        name=entry.name,
        task=entry.task,
        when=describe(entry.schedule),
        queue=entry.options.get("queue"),
        source="settings" if entry.name in settings.beat.schedules else "application",
        next=next_run(entry.schedule, last) if last else None,
        last=run.at if run and run.count else None,
        missed=missed_runs(entry.schedule, run.at, until) if run else 0,
        # Schedulers with tables of their own know more than the configuration says.
        known=run is not None or settings.beat.scheduler is not None,
    )


def describe(schedule: Any) -> str:
    """``every 300 s``, ``cron */5 * * * *``; others as Celery shows them."""
    if isinstance(schedule, crontab):
        fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        return "cron " + " ".join(str(getattr(schedule, f"_orig_{field}")) for field in fields)
    if hasattr(schedule, "run_every"):
        return f"every {schedule.seconds:g} s"
    return str(schedule)
