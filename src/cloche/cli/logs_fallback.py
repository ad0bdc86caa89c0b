"""``cloche logs fallback``: where records go while the broker is away."""

from __future__ import annotations

import click

from cloche.cli.options import settings_options
from cloche.logs.place import MODES, Place
from cloche.settings import Resolved


@click.command()
@click.argument("mode", required=False, type=click.Choice([*MODES, "settings"]))
@settings_options
def fallback(resolved: Resolved, mode: str | None) -> None:
    """Show or change where records go while the broker is away.

    spool: to files of this machine, sent when the broker is back. direct: straight to the
    database. drop: nowhere; they are counted. settings: where logs.fallback says. Every process
    that logs from this run directory obeys at its next flush; nothing is lost or doubled.

    \b
    Examples:
      $ cloche logs fallback
      $ cloche logs fallback direct
      $ cloche logs fallback settings
    """
    place = Place(resolved.settings.run_dir)
    if mode is not None:
        place.set_mode(next((one for one in MODES if one == mode), None))
    click.echo(place.mode(resolved.settings.logs.fallback))
