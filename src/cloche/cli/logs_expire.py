"""``cloche logs expire``: old records leave."""

from __future__ import annotations

from datetime import timedelta

import click

from cloche.cli.logs_lines import write_json
from cloche.cli.options import json_option, settings_options
from cloche.database import Database
from cloche.errors import LogQueryError
from cloche.logs.retention import Expired, expire
from cloche.settings import Resolved
from cloche.settings.quantities import age_of


@click.command("expire")
@click.option("--keep", metavar="AGE", help="Instead of the setting logs.keep, e.g. 90d.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@json_option
@settings_options
def expire_command(resolved: Resolved, keep: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove records and dead letters older than the setting logs.keep.

    The scheduler of `cloche up` does it every hour. On PostgreSQL whole days are dropped, which
    takes no longer for many records than for few; elsewhere rows are deleted in bites.

    Exit codes: 0, 2 a setting is wrong, 6 database.

    \b
    Examples:
      $ cloche logs expire --dry-run
      $ cloche logs expire --keep 90d --json
    """
    age = resolved.settings.logs.keep if keep is None else _age(keep)
    database = Database(resolved.settings)
    try:
        database.migrate()
        done = expire(database, age, dry_run=dry_run)
    finally:
        database.close()
    if as_json:
        write_json(done)
        return
    click.echo(_said(done))


def _age(text: str) -> timedelta:
    seconds = age_of(text)
    if seconds is None:
        raise LogQueryError("--keep is no age", fix="Write it as 12h, 30d or 8w.")
    return timedelta(seconds=seconds)


def _said(done: Expired) -> str:
    would = "would be " if done.dry_run else ""
    days = f"{len(done.days)} days (about {done.day_rows} records), " if done.days else ""
    return (
        f"older than {done.before:%Y-%m-%d %H:%M} UTC: {days}{done.rows} records and "
        f"{done.dead_letters} dead letters {would}removed"
    )
