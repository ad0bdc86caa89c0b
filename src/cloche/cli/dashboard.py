"""``cloche dashboard``: the operators' page, a process of its own."""

from __future__ import annotations

import click

from cloche.cli.options import settings_options, with_pages
from cloche.launch import collector
from cloche.launch.environment import join
from cloche.process.systemd import notify
from cloche.settings import Resolved
from cloche.web.dashboard.app import create_dashboard
from cloche.web.server import serve


@click.command()
@settings_options
def dashboard(resolved: Resolved) -> None:
    """Show health, workers, queues and recent tasks on a web page.

    Exit codes: 0 stopped in order, 2 settings, 3 broker, 4 port taken, 5 application.

    \b
    Examples:
      $ cloche dashboard                             # http://localhost:8001
      $ cloche dashboard -A proj.celery:app --set dashboard.port=9001
    """
    environment = join(with_pages(resolved, ("dashboard",), "cloche dashboard"))
    settings = environment.settings
    serve(
        lambda: create_dashboard(environment.app, settings),
        settings.dashboard,
        "dashboard",
        on_ready=_ready,
    )


def _ready() -> None:
    collector.resume()
    notify("READY=1")
