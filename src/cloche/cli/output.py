"""``cloche logs output``: the log files of the processes, and what is added to them."""

from __future__ import annotations

import time
from difflib import get_close_matches
from pathlib import Path

import click

from cloche.cli.attach import launcher_of
from cloche.cli.options import settings_options
from cloche.errors import ProcessError
from cloche.process.logfile import LogFileTail, logs_in
from cloche.process.output import Output
from cloche.settings import Resolved

_TICK = 0.1
#: Seconds between two looks whether the launcher still lives and new files have appeared.
_LOOK_INTERVAL = 1.0


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--follow", is_flag=True, help="Go on until everything has stopped.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Last lines of each process.",
)
@settings_options
def output(resolved: Resolved, names: tuple[str, ...], follow: bool, lines: int) -> None:
    """Show what the processes print (all, or NAMEs), also after they have ended.

    A worker's name means all its processes; "cloche" is the launcher itself, "guard" the one
    that cleans up after it. The files are in the run directory's logs.

    \b
    Examples:
      $ cloche logs output                           # or simply: cloche logs
      $ cloche logs output worker beat -n 100
      $ cloche logs output -f

    Exit codes: 0 shown, 1 there is no such process, 2 settings.
    """
    directory = resolved.settings.run_dir / "logs"
    shown = Output()
    try:
        tails = _tails(directory, names)
        if names and not tails:
            raise _unknown(directory, names)
        for tail in tails.values():
            shown.add(tail.name)
        for tail in tails.values():
            _show(shown, tail.name, tail.last(lines))
        if follow:
            _follow(resolved, names, tails, shown)
    finally:
        shown.close()


def _follow(
    resolved: Resolved, names: tuple[str, ...], tails: dict[str, LogFileTail], shown: Output
) -> None:
    launcher, directory = launcher_of(resolved), resolved.settings.run_dir / "logs"
    looked = time.monotonic()
    alive = launcher.pid() is not None
    while True:
        for tail in tails.values():
            _show(shown, tail.name, tail.news())
        if not alive:
            return
        time.sleep(_TICK)
        if time.monotonic() - looked >= _LOOK_INTERVAL:
            looked, alive = time.monotonic(), launcher.pid() is not None
            for name, tail in _tails(directory, names).items():
                tails.setdefault(name, tail)  # new: from its beginning


def _tails(directory: Path, names: tuple[str, ...]) -> dict[str, LogFileTail]:
    return {
        name: LogFileTail(name, path)
        for name, path in logs_in(directory).items()
        if not names or name in names or name.rpartition("-")[0] in names
    }


def _unknown(directory: Path, names: tuple[str, ...]) -> ProcessError:
    known = list(logs_in(directory))
    if not known:
        return ProcessError(f"nothing has run in {directory.parent.absolute()} yet")
    near = get_close_matches(names[0], known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ProcessError(
        f"there is no output of {', '.join(names)}", fix=f"{hint}there is: {', '.join(known)}"
    )


def _show(shown: Output, name: str, lines: list[bytes]) -> None:
    if lines:
        shown.show(name, lines)
