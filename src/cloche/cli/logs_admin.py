"""``cloche logs expire``, ``fallback``, ``spool``: what keeps the execution log in order."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta

import click
from pydantic import ByteSize

from cloche.cli.logs_read import write_json
from cloche.cli.options import for_database, json_option, settings_options
from cloche.database import Database
from cloche.errors import BrokerError, BrokerFault, LogQueryError
from cloche.launch.environment import join
from cloche.logs.retention import Expired, expire
from cloche.logs.write.counts import MODES, LogDirectory
from cloche.logs.write.shipper import Shipper
from cloche.logs.write.spool import kept
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
    database = Database(for_database(resolved).settings)
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


@click.command()
@click.argument("mode", required=False, type=click.Choice([*MODES, "settings"]))
@settings_options
def fallback(resolved: Resolved, mode: str | None) -> None:
    """Show or change where records go while the broker is away.

    spool: to files of this machine, sent when the broker is back. direct: straight to the
    database. drop: nowhere; they are counted. settings: where logs.fallback says. Every process
    that logs from this run directory obeys at its next flush; nothing is lost or doubled.

    Exit codes: 0 shown or changed, 1 it cannot be written, 2 settings or command line.

    \b
    Examples:
      $ cloche logs fallback
      $ cloche logs fallback direct
      $ cloche logs fallback settings
    """
    place = LogDirectory(resolved.settings.run_dir)
    if mode is not None:
        place.set_mode(next((one for one in MODES if one == mode), None))
    click.echo(place.mode(resolved.settings.logs.fallback))


def _size(count: int) -> str:
    return ByteSize(count).human_readable()


@click.group()
def spool() -> None:
    """Records that wait on this machine's disk because the broker was away.

    \b
    Examples:
      $ cloche logs spool status
      $ cloche logs spool replay
    """


@spool.command()
@json_option
@settings_options
def status(resolved: Resolved, as_json: bool) -> None:
    """Show how much waits, and how many records were dropped and why.

    Exit codes: 0 shown, 2 settings.

    \b
    Examples:
      $ cloche logs spool status
      $ cloche logs spool status --json
    """
    place, logs = LogDirectory(resolved.settings.run_dir), resolved.settings.logs
    waiting, dropped = kept(place.spool), place.dropped()
    if as_json:
        found = {
            "fallback": place.mode(logs.fallback),
            "waiting": asdict(waiting),
            "max_spool": logs.max_spool,
            "dropped": {reason: asdict(one) for reason, one in dropped.items()},
        }
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"fallback  {place.mode(logs.fallback)}")
    click.echo(
        f"waiting   {_size(waiting.bytes)} of {_size(logs.max_spool)} in {waiting.segments} files, "
        f"of {waiting.living} running and {waiting.ended} ended processes"
    )
    for reason, one in dropped.items():
        click.echo(f"dropped   {one.count} records: {reason}")


@spool.command()
@settings_options
def replay(resolved: Resolved) -> None:
    """Send what ended processes left; running ones send their own.

    Exit codes: 0 nothing of ended processes is left, 2 settings, 3 the broker did not take all,
    5 application.

    \b
    Examples:
      $ cloche logs spool replay
    """
    settings = resolved.settings
    shipper = Shipper(join(resolved).app, settings, settings.logs)
    try:
        sent = shipper.adopt()
    finally:
        shipper.close()
    left = kept(shipper.place.spool)
    click.echo(f"{sent} records sent")
    if left.ended:
        raise BrokerError(
            f"{_size(left.bytes)} of {left.ended} ended processes still wait",
            fault=BrokerFault.OTHER,
            why="the broker did not take them, or its queue is full (logs.max_queued)",
            fix="try again when the broker is back; the next process that logs sends them, or the "
            "next worker that starts",
        )
