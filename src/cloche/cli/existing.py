"""Asking a person about workers that run already."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from cloche.cluster.existing import ExistingWorker, existing_workers
from cloche.errors import ClocheError
from cloche.launch.discovery import application
from cloche.launch.existing import OnExisting
from cloche.launch.pools import import_own_modules
from cloche.settings import Resolved


def ask_about(resolved: Resolved) -> OnExisting | None:
    """Look for workers before a launcher is started, and ask; None if there are none.

    Nothing of it stays in this process's environment, which the launcher inherits.
    """
    before = dict(os.environ)
    try:
        app = application(resolved)
        found = existing_workers(app, import_own_modules) if app is not None else ()
    except (ClocheError, OSError):
        return None  # the launcher tells what is wrong
    finally:
        os.environ.clear()
        os.environ.update(before)
    return ask_existing(found) if found else None


def ask_existing(found: Sequence[ExistingWorker]) -> OnExisting:
    """Adopt, replace or leave; raises click.Abort to quit."""
    click.echo("Workers of this application run already:")
    for one in found:
        click.echo(f"  {one.describe()}")
    answers: dict[str, OnExisting] = {"a": "adopt", "r": "replace", "l": "leave"}
    letter = click.prompt(
        "[a]dopt them, [r]eplace them, [l]eave them and start beside them, or [q]uit?",
        type=click.Choice([*answers, "q"]),
        default="a",
        show_choices=False,
    )
    if letter == "q":
        raise click.Abort
    return answers[letter]
