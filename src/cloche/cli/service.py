"""``cloche service``: downloads over HTTP, a process of its own."""

from __future__ import annotations

import click

from cloche.cli.options import settings_options, with_pages
from cloche.launch import collector
from cloche.launch.environment import join
from cloche.process.systemd import notify
from cloche.settings import Resolved
from cloche.web.downloads.app import create_service
from cloche.web.server import serve


@click.command()
@settings_options
def service(resolved: Resolved) -> None:
    """Serve downloads: a page for people, an API for programs.

    Exit codes: 0 stopped in order, 2 settings, 3 broker, 4 port taken, 5 application,
    6 database.

    \b
    Examples:
      $ cloche service                               # http://localhost:8000
      $ cloche service -A proj.celery:app --set service.port=9000
    """
    environment = join(with_pages(resolved, ("service",), "cloche service"))
    settings = environment.settings
    serve(
        lambda: create_service(environment.app, settings),
        settings.service,
        "service",
        on_ready=_ready,
    )


def _ready() -> None:
    collector.resume()
    notify("READY=1")
