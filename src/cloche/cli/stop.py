"""``cloche stop``: gracefully, then by force, telling what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from cloche.cli.attach import StackProgress, launcher_of, write_outcome
from cloche.cli.options import json_option, settings_options
from cloche.errors import NotRunningError, ProcessError
from cloche.settings import Resolved


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--now", is_flag=True, help="Kill at once instead of waiting for running tasks.")
@click.option("--existing", is_flag=True, help="Workers of this application others started, too.")
@json_option
@settings_options
def stop(
    resolved: Resolved, names: tuple[str, ...], now: bool, existing: bool, as_json: bool
) -> None:
    """Stop everything, or what is NAMEd, and wait until it is gone.

    A worker fetches nothing more; its running tasks have stop.soft seconds to finish, then
    they are given back to the broker, and at stop.grace it is killed. Meanwhile it is shown
    which tasks still run. A worker's name means all its processes; a node name
    (celery@host) also one that others started.

    \b
    Examples:
      $ cloche stop                # everything, also a `cloche up` elsewhere
      $ cloche stop mail           # this worker; the rest goes on
      $ cloche stop --now
      $ cloche stop --existing     # and workers that Cloche did not start

    Exit codes: 0 it is gone (also: nothing ran), 1 something would not stop, 2 settings.
    """
    launcher = launcher_of(resolved)
    progress = StackProgress(quiet=as_json)
    request = {"do": "stop", "names": names, "now": now, "existing": existing}
    try:
        answer = launcher.ask(request, on_event=progress)
        text = "stopped" if not names else f"stopped {', '.join(names)}"
    except NotRunningError:
        if names or existing:
            answer, text = _stop_others(resolved, names, progress)
        else:
            answer, text = {"launcher": None, "processes": []}, "nothing runs"
    if not names:
        launcher.wait_gone(lambda line: progress({"say": line}))
    write_outcome(answer, as_json=as_json, text=text)


def _stop_others(
    resolved: Resolved, names: tuple[str, ...], progress: StackProgress
) -> tuple[dict[str, Any], str]:
    """Without a launcher: what others started."""
    find_and_stop: Callable[..., list[str]] = import_module("cloche.launch.discovery").stop_named
    gone = find_and_stop(resolved, names, lambda line: progress({"say": line}))
    missing = [name for name in names if name not in gone]
    if missing:
        raise ProcessError(
            f"there is no process {', '.join(missing)}",
            why=f"nothing runs in {resolved.settings.run_dir.absolute()}",
            fix="`cloche ps` shows what runs",
        )
    answer = {"launcher": None, "processes": [{"name": n, "state": "stopped"} for n in gone]}
    return answer, f"stopped {', '.join(gone)}" if gone else "nothing runs"
