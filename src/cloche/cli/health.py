"""``cloche health``: one command for Docker, Kubernetes, systemd and people."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module

import click

from cloche.cli.options import json_option, settings_options
from cloche.plain import printable
from cloche.process.heartbeat import liveness
from cloche.records import Health
from cloche.settings import Resolved

#: The kinds of `cloche.health.checks.CHECKS` that one look can tell (a test compares them); named
#: here because the registry imports Celery, which ``--help`` and ``--live`` do without.
_KINDS = ("broker", "results", "database", "workers", "queues", "beat", "restarts")
_NEEDED = _KINDS[:3]


@click.command()
@click.option("--live", is_flag=True, help="Only whether the processes here live; asks no broker.")
@click.option("--ready", is_flag=True, help="Only what is needed to work, as /readyz tells.")
@click.option("--worker", metavar="NAME", help="Only this worker of this directory, cheaply.")
@click.option("--only", metavar="A,B", help=f"Only these of {', '.join(_KINDS)}.")
@click.option(
    "--timeout",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds to wait for any answer.",
)
@json_option
@settings_options
def health(
    resolved: Resolved,
    as_json: bool,
    live: bool,
    ready: bool,
    worker: str | None,
    only: str | None,
    timeout: float,
) -> None:
    """Tell whether everything works; exit code 0 or 1.

    Broker, results, database, every worker, every queue, the scheduler. Workers are those the
    settings name, else those that run in this directory.

    What only hides or delays work is a warning, such as a worker that hung and was restarted
    within the last ten minutes: told, and no failure.

    Exit codes: 0 all is well, 1 something is not, 2 settings, 5 application.

    \b
    Examples:
      $ cloche health
      $ cloche health --json --timeout 2
      $ cloche health --only broker,queues
      $ cloche health --ready                # Kubernetes: a web page
      $ cloche health --live --worker mail   # Docker, Kubernetes
    """
    if live and ready and worker is None:
        raise click.UsageError("--live and --ready are two questions: ask one")
    if worker is not None or live:
        checks = liveness(resolved.settings.run_dir.absolute(), worker, ready=ready)
    else:
        kinds = _NEEDED if ready else _chosen(only)
        # Celery and the application take a second to import, which the question above is spared.
        checks = import_module("cloche.launch.health").look(resolved, kinds, timeout, time.time())
    _write(checks, as_json=as_json)
    sys.stdout.flush()
    # A check that hangs has a thread, which the interpreter would wait for.
    os._exit(1 if any(map(_is_bad, checks)) else 0)


def _chosen(only: str | None) -> tuple[str, ...]:
    """The kinds named, singular or plural."""
    if only is None:
        return _KINDS
    known = {name: kind for kind in _KINDS for name in (kind, kind.removesuffix("s"))}
    named = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in named if name not in known]
    if unknown or not named:
        raise click.UsageError(f"--only takes {', '.join(_KINDS)}, not {', '.join(unknown)!r}")
    return tuple(known[name] for name in named)


def _write(checks: tuple[Health, ...], *, as_json: bool) -> None:
    bad = [check.name for check in checks if _is_bad(check)]
    if as_json:
        click.echo(json.dumps({"healthy": not bad, "checks": [_fields(one) for one in checks]}))
        return
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        click.echo(f"{_mark(check)}  {check.name:<{width}}  {printable(check.detail)}")
    click.echo(f"not healthy: {', '.join(bad)}" if bad else "healthy")


def _is_bad(check: Health) -> bool:
    return not check.ok and not check.warns


def _mark(check: Health) -> str:
    if check.ok:
        return click.style("ok  ", fg="green")
    return click.style("warn", fg="yellow") if check.warns else click.style("FAIL", fg="red")


def _fields(check: Health) -> dict[str, object]:
    seconds = round(check.took, 4)
    found = {"name": check.name, "ok": check.ok, "detail": check.detail, "seconds": seconds}
    return {**found, "warns": True} if check.warns else found
