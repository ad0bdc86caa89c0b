"""``cloche schedules``: what runs when, and what did not."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

import click

from cloche.app.schedules import add_schedules
from cloche.cli.options import json_option, settings_options
from cloche.cli.table import columns, write_table
from cloche.cluster.schedules import schedules_seen
from cloche.launch.environment import join
from cloche.launch.pools import import_own_modules
from cloche.records import SchedulesSeen
from cloche.settings import Resolved


@click.command()
@json_option
@settings_options
def schedules(resolved: Resolved, as_json: bool) -> None:
    """List schedules: next, last and missed runs.

    Of the settings and of the application. Missed are runs that nobody has sent and that are
    later than beat.late. Times are in the settings' timezone.

    Exit codes: 0, 1 the broker does not answer, 2 settings, 3 no broker, 5 application.

    \b
    Examples:
      $ cloche schedules
      $ cloche schedules -A proj.celery:app --json
    """
    environment = join(resolved)
    import_own_modules(environment.app)
    environment.app.finalize()
    add_schedules(environment.app, environment.settings)
    seen = schedules_seen(environment.app, environment.settings)
    if as_json:
        click.echo(json.dumps(asdict(seen), default=_iso, indent=2))
    else:
        _write(seen)


def _write(seen: SchedulesSeen) -> None:
    rows = [
        {
            "schedule": one.name,
            "task": one.task,
            "when": one.when,
            "queue": one.queue or "-",
            "next": _time(one.next),
            "last": _time(one.last),
            "missed": str(one.missed),
        }
        for one in seen.schedules
    ]
    if rows:
        write_table(columns("schedule next missed when task last queue"), rows)
    else:
        click.echo("nothing is scheduled", err=True)
    if not seen.known:
        click.echo("this broker does not remember runs: last and missed are not known", err=True)
    else:
        click.echo(f"scheduler: {seen.scheduler or 'none runs'}", err=True)


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
