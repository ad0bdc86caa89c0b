"""Options that every command with settings shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from cloche.errors import SettingsError
from cloche.settings import Candidate, Origin, load

_Command = TypeVar("_Command", bound=Callable[..., Any])

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
        return command(*args, resolved=load(cli), **kwargs)

    wrapped: Any = run
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


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
            cli[key] = Candidate(chosen, Origin("cli", option))
    return cli
