"""``cloche scale``: more or fewer processes of a worker."""

from __future__ import annotations

import click

from cloche.cli.attach import StackProgress, launcher_of, write_outcome
from cloche.cli.options import json_option, settings_options
from cloche.settings import Resolved


def _counts(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    """``NAME=N`` each."""
    counts = []
    for word in words:
        name, _, number = word.rpartition("=")
        if not (name and number.isascii() and number.isdigit()):
            raise click.BadParameter(f"{word!r} is not NAME=N, e.g. worker=3", ctx, param)
        counts.append((name, int(number)))
    return tuple(counts)


@click.command()
@click.argument("counts", nargs=-1, required=True, callback=_counts, metavar="NAME=N...")
@json_option
@settings_options
def scale(resolved: Resolved, counts: tuple[tuple[str, int], ...], as_json: bool) -> None:
    """Let worker NAME have N processes. Tasks go on meanwhile.

    New ones are ready when the command ends; those too many finish their tasks as in
    `cloche stop`. It lasts until the launcher stops or the declaration changes.

    \b
    Examples:
      $ cloche scale worker=3
      $ cloche scale worker=1 mail=4
      $ cloche scale mail=0

    Exit codes: 0 done, 1 it could not be done, 2 settings or command line.
    """
    request = {"do": "scale", "counts": dict(counts)}
    answer = launcher_of(resolved).ask(request, on_event=StackProgress(quiet=as_json))
    text = ", ".join(f"{name}: {number}" for name, number in counts)
    write_outcome(answer, as_json=as_json, text=text)
