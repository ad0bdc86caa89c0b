"""``cloche beat``: Celery's scheduler with production defaults."""

from __future__ import annotations

import click

from cloche.cli.options import settings_options
from cloche.launch.beat.run import run_beat
from cloche.launch.environment import join
from cloche.settings import Origin, OriginCandidate, Resolved, reload


@click.command()
@click.option("-l", "--loglevel", default="INFO", show_default=True, help="Least level logged.")
@click.option("-S", "--scheduler", metavar="CLASS", help="Instead of the application's own.")
@settings_options
def beat(resolved: Resolved, loglevel: str, scheduler: str | None) -> None:
    """Run the scheduler in the foreground. Run one only.

    Exit codes: 0 stopped in order, 2 settings, 3 broker, 5 application.

    \b
    Examples:
      $ cloche beat
      $ cloche beat -A proj.celery:app -l DEBUG
      $ cloche beat -S django_celery_beat.schedulers:DatabaseScheduler
    """
    if scheduler is not None:
        chosen = OriginCandidate(scheduler, Origin("cli", "--scheduler"))
        resolved = reload(resolved, cli={"beat.scheduler": chosen})
    run_beat(join(resolved), loglevel=loglevel)
