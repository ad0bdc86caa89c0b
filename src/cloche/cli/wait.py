"""``cloche wait --ready``: for scripts that need the stack."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cloche.cli.attach import launcher_of
from cloche.cli.options import json_option, settings_options
from cloche.errors import ClocheError, NotReadyError, NotRunningError
from cloche.launch.client import Launcher
from cloche.settings import Resolved

_TICK = 0.1


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--ready", is_flag=True, required=True, help="Until all (or NAME) is ready.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Give up after so many seconds.",
)
@json_option
@settings_options
def wait(
    resolved: Resolved, names: tuple[str, ...], ready: bool, timeout: float, as_json: bool
) -> None:
    """Wait until what was started is ready, also if nothing was started yet.

    \b
    Examples:
      $ cloche wait --ready
      $ cloche wait --ready --timeout 20 worker

    Exit codes: 0 ready, 1 not in time, or given up after a crash loop, 2 settings.
    """
    launcher = launcher_of(resolved)
    deadline = time.monotonic() + timeout
    while True:
        state = _state(launcher, names, max(0.0, deadline - time.monotonic()))
        if state.get("ready"):
            break
        if time.monotonic() >= deadline:
            raise _late(state, timeout)
        time.sleep(_TICK)
    click.echo(json.dumps(state) if as_json else "ready")


def _state(launcher: Launcher, names: tuple[str, ...], patience: float) -> dict[str, Any]:
    try:
        request = {"do": "ready", "names": names}
        return launcher.ask(request, timeout=10, patience=patience)
    except NotRunningError as error:
        return {"ready": False, "why": error.what}


def _late(state: dict[str, Any], timeout: float) -> ClocheError:
    waiting = state.get("waiting") or []
    lines = [f"{one['name']} is {one['state']}" for one in waiting]
    return NotReadyError(
        f"not ready within {timeout:g} s",
        why=", ".join(lines) or state.get("why", "it is still starting"),
        fix="`cloche logs` shows what the processes print",
    )
