"""``cloche restart``: without a gap in consumption."""

from __future__ import annotations

import click

from cloche.cli.attach import StackProgress, count_of, launcher_of, write_outcome
from cloche.cli.options import json_option, settings_options
from cloche.launch.client import digests, given_workers
from cloche.settings import Resolved


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--now", is_flag=True, help="Kill and start at once instead of rolling.")
@json_option
@settings_options
def restart(resolved: Resolved, names: tuple[str, ...], now: bool, as_json: bool) -> None:
    """Start anew what is NAMEd, or everything but the broker, with the code of now.

    Workers roll: a further process is ready before the first one stops consuming, and they
    are replaced one after the other. Running tasks have stop.soft seconds to finish. An
    adopted worker is replaced by one of Cloche's.

    \b
    Examples:
      $ cloche restart                               # after a deploy
      $ cloche restart mail
      $ cloche restart broker
      $ cloche restart --now

    Exit codes: 0 it runs anew, 1 something would not start (the rest goes on), 2 settings.
    """
    request = {
        "do": "restart",
        "names": names,
        "now": now,
        "app": resolved.settings.app,
        "settings": digests(resolved.settings),
        "workers": given_workers(resolved.settings),
    }
    answer = launcher_of(resolved).ask(request, on_event=StackProgress(quiet=as_json))
    text = f"{count_of(answer, 'ready', 'adopted')} running"
    write_outcome(answer, as_json=as_json, text=text)
