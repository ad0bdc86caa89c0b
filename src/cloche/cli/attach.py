"""What the commands that ask a running launcher share."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cloche.cli.table import write_line
from cloche.launch.client import Launcher
from cloche.process.control import Fields
from cloche.settings import Resolved

#: States worth a line while a command works, and their colours.
_TOLD: dict[str, str | None] = {
    "ready": "green",
    "stopped": None,
    "backing-off": "yellow",
    "crash-loop": "red",
}


def launcher_of(resolved: Resolved) -> Launcher:
    """The launcher of these settings' run directory."""
    return Launcher(resolved.settings.run_dir)


class StackProgress:
    """Shows what a launcher tells while it works; nothing where JSON is wanted."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said = 0.0

    def __call__(self, event: Fields) -> None:
        """One event of the control socket."""
        if self._quiet:
            return
        if "say" in event:
            click.echo(event["say"])
        elif "still" in event:
            self._still(event["still"])
        elif event.get("state") in _TOLD:
            pid = f" (pid {event['pid']})" if event.get("pid") else ""
            text = f"{event['name']}: {event['state']}{pid}"
            write_line(text, colour=_TOLD[event["state"]])

    def _still(self, processes: list[dict[str, Any]]) -> None:
        """What a stop still waits for: every five seconds, the first time at once."""
        if time.monotonic() - self._said < 5:
            return
        self._said = time.monotonic()
        for one in processes:
            waits = time.time() - one["since"]
            click.echo(f"{one['name']}: stopping for {waits:.0f} s (pid {one['pid']})")
            for task in one["tasks"]:
                since = f", for {time.time() - task['since']:.0f} s" if task["since"] else ""
                click.echo(f"  still runs {task['name']} [{task['id']}]{since}")


def write_outcome(answer: Fields, *, as_json: bool, text: str) -> None:
    """The end of a command: its answer as JSON, or one line for a person."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False) if as_json else text)


def count_of(answer: Fields, *states: str) -> str:
    """``3 processes``: how many of the answer are in one of ``states``."""
    number = sum(one["state"] in states for one in answer["processes"])
    return f"{number} process{'' if number == 1 else 'es'}"
