"""``cloche worker``: Celery's worker with production defaults."""

from __future__ import annotations

import sys
from typing import get_args

import click

from cloche.cli.options import settings_options
from cloche.launch.environment import join
from cloche.launch.workers import any_worker, declared_workers, run_worker
from cloche.settings import Resolved
from cloche.settings.model import WorkerSettings

POOLS = get_args(WorkerSettings.model_fields["pool"].annotation)


@click.command()
@click.option("--name", default="worker", show_default=True, help="Node name before the @.")
@click.option("--like", metavar="NAME", help="Take the settings of [workers.NAME].")
@click.option("-Q", "--queues", metavar="A,B", help="Queues to consume (default: all declared).")
@click.option("-X", "--exclude-queues", metavar="A,B", help="Queues to leave to other workers.")
@click.option("-c", "--concurrency", type=click.IntRange(1), help="Tasks at once.")
@click.option("-P", "--pool", type=click.Choice(POOLS), help="Pool.")
@click.option("-l", "--loglevel", default="INFO", show_default=True, help="Least level logged.")
@click.option(
    "--supervised", is_flag=True, hidden=True, help="A supervisor waits, so SIGQUIT need not."
)
@settings_options
def worker(
    resolved: Resolved,
    name: str,
    like: str | None,
    loglevel: str,
    supervised: bool,
    **given: object,
) -> None:
    """Run one worker in the foreground.

    Exit codes: 0 stopped in order, 2 settings, 3 broker, 5 application.

    \b
    Examples:
      $ cloche worker                                # every declared queue
      $ cloche worker -A proj.celery:app -Q mail -c 2
      $ cloche worker --like download                # as [workers.download] says
      $ cloche worker -P asyncio -c 200              # coroutines, 200 at once
    """
    environment = join(resolved)
    told = {key: value for key, value in given.items() if value is not None}
    for key in ("queues", "exclude_queues"):
        if isinstance(told.get(key), str):
            told[key] = tuple(str(told[key]).split(","))
    if "queues" in told:  # named here, they are not what the declared worker leaves to others
        told.setdefault("exclude_queues", ())
    declared = declared_workers(environment.settings)
    base = declared.get(like or name) or any_worker(environment.settings)
    sys.exit(
        run_worker(
            environment,
            name=name,
            worker=WorkerSettings.model_validate({**base.model_dump(exclude_unset=True), **told}),
            loglevel=loglevel,
            supervised=supervised,
        )
    )
