"""``cloche flower``: Flower, if it is installed."""

from __future__ import annotations

from functools import partial

import click

from cloche.cli.options import settings_options
from cloche.launch.flower import run_flower
from cloche.settings import Resolved


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=5555, show_default=True, type=click.IntRange(1, 65535), help="Port."
)
@settings_options
def flower(resolved: Resolved, host: str, port: int) -> None:
    """Run Flower on the application, with a generated password.

    The password is printed once and kept in the run directory, readable by this user alone.
    Needs the extra: pip install 'cloche[flower]'.

    Exit codes: 0 stopped in order, 2 settings or not installed, 3 broker, 4 port taken,
    5 application.

    \b
    Examples:
      $ cloche flower                                # http://127.0.0.1:5555
      $ cloche flower -A proj.celery:app --port 5556
    """
    run_flower(resolved, host=host, port=port, say=partial(click.echo, err=True))
