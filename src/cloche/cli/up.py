"""``cloche up``: start everything."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import click

from cloche.cli import STARTED
from cloche.cli.existing import ask_existing
from cloche.cli.options import existing_option, settings_options
from cloche.errors import BrokerError, PortTakenError
from cloche.launch.broker import Answer
from cloche.launch.existing import DEFAULT, OnExisting
from cloche.launch.up import StackOptions, Up
from cloche.process.output import Output
from cloche.settings import Resolved, reload


@click.command()
@click.option("--reload", "reloads", is_flag=True, help="Load changed code (development).")
@existing_option
@settings_options
def up(resolved: Resolved, reloads: bool, on_existing: OnExisting | None) -> None:
    """Start everything and stop it on Ctrl-C.

    Broker (embedded where none is configured), workers, scheduler, the service on port 8000
    and the dashboard on port 8001. A second Ctrl-C does not wait for running tasks.

    \b
    Examples:
      $ cloche up
      $ cloche up -A proj.celery:app
      $ cloche up -A proj.celery:app --reload
      $ cloche up --set service.port=9000 --set broker.url=redis://localhost/0
      $ cloche up -A proj.celery:app --on-existing replace

    Other terminals may `cloche ps`, `logs`, `restart`, `scale` and `stop` it meanwhile.

    Exit codes: 0 stopped in order, 1 something would not start or stay up, 2 settings,
    3 broker, 4 port taken, 5 application, 6 database, 130 stopped at once (second Ctrl-C).
    """
    if reloads:
        resolved = with_reload(resolved)
    sys.exit(run_launcher(resolved, {"everything": True, "on_existing": on_existing}))


def with_reload(resolved: Resolved) -> Resolved:
    """The settings of ``--reload``. Raises ExtraMissingError without watchfiles."""
    import_module("cloche.launch.reload")
    return reload(resolved, cli={"reload.enabled": True})


def run_launcher(resolved: Resolved, chosen: Mapping[str, Any], *, detached: bool = False) -> int:
    """Run a launcher here until it is stopped; its exit code.

    ``chosen``: names, everything, worker, on_existing, as ``cloche start`` takes them.
    """
    worker = chosen.get("worker")
    answer: OnExisting | None = chosen.get("on_existing")
    wanted = StackOptions(
        names=tuple(chosen.get("names", ())),
        everything=bool(chosen["everything"]),
        worker=(worker["name"], worker["options"]) if worker else None,
        on_existing=answer or DEFAULT,
        detached=detached,
    )
    interactive = not detached and sys.stdin.isatty() and sys.stdout.isatty()
    if not detached:
        return _run(resolved, wanted, None, interactive, interactive and answer is None)
    with Path(os.devnull).open("w") as nowhere:  # all it says is in its log files
        return _run(resolved, wanted, nowhere, False, False)


def _run(
    resolved: Resolved,
    wanted: StackOptions,
    stream: TextIO | None,
    interactive: bool,
    asking: bool,
) -> int:
    output = Output(stream, logs=resolved.settings.run_dir / "logs")
    try:
        return Up(
            resolved,
            output,
            begun=STARTED,
            wanted=wanted,
            ask=ask if interactive else None,
            ask_existing=ask_existing if asking else None,
        ).run()
    except PortTakenError as error:
        moved = _other_port(resolved, error) if interactive else None
        if moved is None:
            raise
        return _run(moved, wanted, stream, interactive, asking)
    finally:
        output.close()


def ask(error: BrokerError) -> Answer:
    """What to do about a broker that cannot be used."""
    click.echo(str(error))
    answers: dict[str, Answer] = {"r": "retry", "e": "embedded", "q": "quit"}
    letter = click.prompt(
        "[r]etry, start the [e]mbedded broker, or [q]uit?",
        type=click.Choice(list(answers)),
        default="r",
        show_choices=False,
    )
    return answers[letter]


def _other_port(resolved: Resolved, error: PortTakenError) -> Resolved | None:
    """The settings with the next free port for the page that wanted a taken one."""
    click.echo(str(error))
    pages = {"service": resolved.settings.service, "dashboard": resolved.settings.dashboard}
    page = next((name for name, web in pages.items() if web.port == error.port), None)
    if page is None or not click.confirm(f"Use port {error.free} for the {page}?", default=True):
        return None
    return reload(resolved, cli={f"{page}.port": error.free})
