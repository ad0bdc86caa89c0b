"""``cloche up``: start everything."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from cloche.cli import STARTED
from cloche.cli.options import settings_options
from cloche.errors import BrokerError, PortTakenError
from cloche.launch.broker import Answer
from cloche.launch.up import Up
from cloche.process.output import Output
from cloche.settings import Resolved, reload


@click.command()
@click.option("--reload", "reloads", is_flag=True, help="Load changed code (development).")
@settings_options
def up(resolved: Resolved, reloads: bool) -> None:
    """Start everything and stop it on Ctrl-C.

    Broker (embedded where none is configured), workers, scheduler, the service on port 8000
    and the dashboard on port 8001. A second Ctrl-C does not wait for running tasks.

    \b
    Examples:
      $ cloche up
      $ cloche up -A proj.celery:app
      $ cloche up -A proj.celery:app --reload
      $ cloche up --set service.port=9000 --set broker.url=redis://localhost/0

    Exit codes: 0 stopped in order, 1 something would not start or stay up, 2 settings,
    3 broker, 4 port taken, 5 application, 6 database, 130 stopped at once (second Ctrl-C).
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if reloads:
        resolved = with_reload(resolved)
    sys.exit(_run(resolved, interactive=interactive))


def with_reload(resolved: Resolved) -> Resolved:
    """The settings of ``--reload``. Raises ExtraMissingError without watchfiles."""
    import_module("cloche.launch.reloading")
    return reload(resolved, cli={"reload.enabled": True})


def _run(resolved: Resolved, *, interactive: bool) -> int:
    output = Output(logs=resolved.settings.run_dir / "logs")
    try:
        return Up(resolved, output, begun=STARTED, ask=ask if interactive else None).run()
    except PortTakenError as error:
        moved = _other_port(resolved, error) if interactive else None
        if moved is None:
            raise
        return _run(moved, interactive=interactive)
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
