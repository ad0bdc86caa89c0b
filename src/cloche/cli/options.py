"""Options that every command with settings shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

import click

from cloche.errors import ClocheError, SettingsError
from cloche.launch.client import Launcher
from cloche.process.table import INSTANCE
from cloche.settings import Origin, OriginCandidate, Resolved, Settings, load, reload

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The web servers.
PAGES = ("service", "dashboard")
#: Seconds a launcher may take to say what it runs.
_TIMEOUT = 2.0

_OPTIONS = (
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set any setting, e.g. --set broker.connect_timeout=2s (repeatable).",
    ),
    click.option("-A", "--app", metavar="APP", help="The Celery application, as celery -A takes."),
    click.option(
        "--run-dir", metavar="PATH", help="Where Cloche keeps its files (default .cloche)."
    ),
)
#: For commands whose output a machine may read.
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
#: For commands that may meet workers which others started.
existing_option = click.option(
    "--on-existing",
    type=click.Choice(("adopt", "replace", "leave", "fail")),
    help="Workers of this application that others started: adopt (count and watch them; the "
    "default where nobody can be asked), replace, leave (start beside them), or fail.",
)


def settings_options(command: _Command) -> _Command:
    """Add ``--set``, ``-A/--app`` and ``--run-dir``.

    The command is called with ``resolved`` (cloche.settings.Resolved) instead. Raises
    SettingsError before the command runs if anything is wrong.
    """

    @wraps(command)
    def run(
        *args: Any,
        assignments: tuple[str, ...],
        app: str | None,
        run_dir: str | None,
        **kwargs: Any,
    ) -> Any:
        cli = given({"--app": ("app", app), "--run-dir": ("run_dir", run_dir)}, assignments)
        resolved = _as_it_runs(load(cli), cli)
        warn(resolved)
        return command(*args, resolved=resolved, **kwargs)

    wrapped: Any = run
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def warn(resolved: Resolved) -> None:
    """Tell on stderr what could not be read; a launcher has told it for its processes."""
    if INSTANCE not in os.environ:
        for warning in resolved.warnings:
            click.echo(f"warning: {warning}", err=True)


def _as_it_runs(resolved: Resolved, cli: dict[str, object]) -> Resolved:
    """Where no application is named: the one whose launcher runs here, with what it was told."""
    launcher = Launcher(resolved.settings.run_dir)
    if resolved.origin("app").kind != "default" or launcher.pid() is None:
        return resolved
    try:
        told = launcher.ask({"do": "given"}, timeout=_TIMEOUT, patience=_TIMEOUT)["environ"]
    except (ClocheError, OSError):
        return resolved
    return load(cli, environ={**os.environ, **told})


def of_application(resolved: Resolved) -> Resolved:
    """The settings as the application's processes have them, where one is named: with what it
    sets itself. Raises AppError."""
    if resolved.settings.app == Settings.model_fields["app"].default:
        return resolved
    # Celery and the application take a second to import.
    environment: Any = import_module("cloche.launch.environment").load_environment(resolved)
    found: Resolved = environment.resolved
    return found


def for_database(resolved: Resolved) -> Resolved:
    """The settings with the database that the application's processes use.

    Whose DATABASE_URL is, only the application can say: it is imported where that is the
    question. Raises AppError and SettingsError.
    """
    if resolved.settings.database.url:
        return resolved
    try:
        unsaid = load(guest=False).settings.database.url is None
    except SettingsError:  # of a project's own file, perhaps
        unsaid = False
    return resolved if unsaid else of_application(resolved)


def with_pages(resolved: Resolved, pages: Collection[str], where: str) -> Resolved:
    """With the pages on that ``where`` (an option, a command) asks for.

    In an application that Cloche did not make none is on unasked; what a setting says stands.
    """
    keys = [f"{page}.enabled" for page in pages]
    asked = [key for key in keys if resolved.origin(key).kind == "default"]
    cli = {key: OriginCandidate(True, Origin("cli", where)) for key in asked}
    return reload(resolved, cli=cli) if cli else resolved


def given(
    options: dict[str, tuple[str, object]], assignments: tuple[str, ...] = ()
) -> dict[str, object]:
    """What ``load(cli)`` takes: per option (its key, its value or None), then ``--set``'s own.

    An option of its own name beats ``--set`` of the same key; of two ``--set`` the last wins.
    """
    cli: dict[str, object] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key.strip():  # not quoted: it may be a secret with a lost key
            raise SettingsError("--set takes KEY=VALUE, e.g. --set broker.connect_timeout=2s")
        cli[key.strip()] = value
    for option, (key, chosen) in options.items():
        if chosen is not None:
            cli[key] = OriginCandidate(chosen, Origin("cli", option))
    return cli
