"""``cloche logs spool``: records that wait on this machine's disk."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from cloche.cli.options import json_option, settings_options
from cloche.errors import BrokerError, BrokerFault
from cloche.launch.environment import join
from cloche.logs.place import Place
from cloche.logs.shipping import Shipper
from cloche.logs.spool import kept
from cloche.settings import Resolved


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

    \b
    Examples:
      $ cloche logs spool status
      $ cloche logs spool status --json
    """
    place, logs = Place(resolved.settings.run_dir), resolved.settings.logs
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
        f"waiting   {waiting.bytes} of {logs.max_spool} bytes in {waiting.segments} files, "
        f"of {waiting.living} running and {waiting.ended} ended processes"
    )
    for reason, one in dropped.items():
        click.echo(f"dropped   {one.count} records: {reason}")


@spool.command()
@settings_options
def replay(resolved: Resolved) -> None:
    """Send what ended processes left; running ones send their own.

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
            f"{left.bytes} bytes of {left.ended} ended processes still wait",
            fault=BrokerFault.OTHER,
            why="the broker did not take them, or its queue is full (logs.max_queued)",
            fix="try again when the broker is back; the next process that logs sends them, or the "
            "next worker that starts",
        )
