"""``cloche tasks``: what is registered, and what Celery knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from celery import Celery

from cloche.aio.task import runs_coroutines
from cloche.app import harden
from cloche.app.registration import import_tasks, registration_problems
from cloche.cli.options import json_option, settings_options
from cloche.cli.table import columns, write_table
from cloche.launch.environment import load_environment
from cloche.launch.pools import queue_of
from cloche.settings import Resolved


@dataclass(frozen=True, slots=True)
class Registered:
    """One task as it stands, family limits and annotations applied. Times are in seconds."""

    name: str
    module: str
    queue: str | None
    coroutine: bool
    max_retries: int | None
    retry_delay: float
    soft_time_limit: float | None
    time_limit: float | None
    rate_limit: str | None
    acks_late: bool


@click.command()
@click.option("--all", "everything", is_flag=True, help="Celery's own tasks too.")
@json_option
@settings_options
def tasks(resolved: Resolved, as_json: bool, everything: bool) -> None:
    """List registered tasks: module, queue, limits, retries.

    Needs no broker. Warnings about missing and misnamed tasks go to stderr.

    Exit codes: 0, 2 settings, 5 application (with the traceback of a module that fails).

    \b
    Examples:
      $ cloche tasks -A proj.celery:app
      $ cloche tasks -A proj.celery:app --json
    """
    environment = load_environment(resolved)
    app = environment.app
    harden(app, environment.settings)
    import_tasks(app)
    found = sorted(registered(app, everything=everything), key=lambda one: one.name)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        _write(found)
    for line in registration_problems(app):
        click.echo(f"warning: {line}", err=True)


def registered(app: Celery, *, everything: bool = False) -> Iterator[Registered]:
    """The tasks of ``app``."""
    for name, task in app.tasks.items():
        if everything or not name.startswith("celery."):
            yield Registered(
                name=name,
                module=type(task).__module__,
                queue=queue_of(app, task),
                coroutine=runs_coroutines(task),
                max_retries=task.max_retries,
                retry_delay=task.default_retry_delay,
                soft_time_limit=task.soft_time_limit,
                time_limit=task.time_limit,
                rate_limit=None if task.rate_limit is None else str(task.rate_limit),
                acks_late=bool(task.acks_late),
            )


def _write(found: list[Registered]) -> None:
    rows = [
        {
            "task": one.name,
            "module": one.module,
            "queue": one.queue or "?",
            "retries": _retries(one),
            "limits": _limits(one),
            "rate": one.rate_limit or "-",
        }
        for one in found
    ]
    if rows:
        write_table(columns("task queue limits retries rate module"), rows)
    else:
        click.echo("the application has no tasks of its own (Celery's: --all)", err=True)


def _retries(one: Registered) -> str:
    most = "∞" if one.max_retries is None else one.max_retries
    return f"{most} × {one.retry_delay:g} s"


def _limits(one: Registered) -> str:
    parts: list[tuple[str, Any]] = [("soft", one.soft_time_limit), ("hard", one.time_limit)]
    return ", ".join(f"{name} {value:g} s" for name, value in parts if value) or "none"
