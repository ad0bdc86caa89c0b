"""``cloche start``: what is declared, in the background."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from cloche.cli.attach import StackProgress, count_of, launcher_of, write_outcome
from cloche.cli.options import (
    PAGES,
    existing_option,
    json_option,
    settings_options,
    with_pages,
)
from cloche.errors import NotRunningError
from cloche.launch.client import Daemon, Launcher, digests, given_workers
from cloche.settings import Resolved, to_environ

POOLS = ("auto", "prefork", "threads", "solo", "asyncio")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="The service and the dashboard, too.")
@click.option("--name", metavar="W", help="Name of a worker declared by the options below.")
@click.option("-Q", "--queue", "--queues", "queues", metavar="A,B", help="Queues it consumes.")
@click.option("-c", "--concurrency", type=click.IntRange(1), help="Tasks at once.")
@click.option("-P", "--pool", type=click.Choice(POOLS), help="Pool.")
@click.option("--processes", type=click.IntRange(1), help="How many such workers.")
@click.option("--foreground", is_flag=True, help="In this terminal, until Ctrl-C.")
@existing_option
@click.option("--detached", is_flag=True, hidden=True, help="No terminal: a launcher alone.")
@json_option
@settings_options
def start(
    resolved: Resolved,
    names: tuple[str, ...],
    everything: bool,
    name: str | None,
    queues: str | None,
    foreground: bool,
    on_existing: str | None,
    detached: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Start workers and scheduler in the background, or what is NAMEd.

    The broker, where it is embedded, starts with them. What runs already is left as it is,
    what is declared no longer is stopped, so to start again does no harm. Without any option
    or setting there is one worker for everything, with a process per core, at most four.

    \b
    Examples:
      $ cloche start                               # workers, scheduler, broker
      $ cloche start --all                         # service and dashboard, too
      $ cloche start -A proj.celery:app mail beat  # these and what they need
      $ cloche start --queue mail -c 8 -P threads --name mailer
      $ cloche start --foreground

    Exit codes: 0 it runs, 1 something would not start, 2 settings, 3 broker, 4 port taken,
    5 application, 6 database.
    """
    worker = _worker(name, queues, options)
    pages = PAGES if everything else tuple(set(PAGES).intersection(names))
    resolved = with_pages(resolved, pages, "--all" if everything else "its name")
    chosen: dict[str, Any] = {"names": names, "everything": everything, "worker": worker}
    if foreground:
        chosen["on_existing"] = on_existing
        sys.exit(_foreground(resolved, chosen, detached=detached))
    launcher = launcher_of(resolved)
    progress = StackProgress(quiet=as_json)
    while True:
        launcher.directory.wait_stopped(lambda line: progress({"say": line}))
        begun = None
        with launcher.starting():
            if launcher.pid() is None:
                begun = _begin(resolved, launcher, _arguments(chosen), on_existing, quiet=as_json)
        request = {
            "do": "start",
            **chosen,
            "app": resolved.settings.app,
            "settings": digests(resolved.settings),
            "workers": given_workers(resolved.settings),
            "on_existing": None if begun else on_existing,
        }
        try:
            answer = launcher.ask(request, on_event=progress)
            break
        except NotRunningError:
            if begun:
                raise  # it was stopped meanwhile
    running = count_of(answer, "ready", "adopted")
    text = f"{running} running, kept by pid {answer['launcher']}; `cloche ps` shows them"
    write_outcome(answer, as_json=as_json, text=text)


def _worker(name: str | None, queues: str | None, options: dict[str, Any]) -> dict[str, Any] | None:
    """The worker the command line declares; its name defaults to its queues'."""
    given = {key: value for key, value in options.items() if value is not None}
    if queues is not None:
        given["queues"] = [queue.strip() for queue in queues.split(",") if queue.strip()]
        if not given["queues"]:
            raise click.BadParameter("it names no queue", param_hint="--queue")
    if name is None and not given:
        return None
    return {"name": name or "-".join(given.get("queues", ())) or "worker", "options": given}


def _arguments(chosen: dict[str, Any]) -> list[str]:
    """The same choice as words, for the launcher in the background."""
    words = ["--all"] if chosen["everything"] else []
    if worker := chosen["worker"]:
        words += ["--name", worker["name"]]
        for key, value in worker["options"].items():
            words += [f"--{key}", ",".join(value) if isinstance(value, list) else str(value)]
    return [*words, "--", *chosen["names"]]


def _begin(
    resolved: Resolved,
    launcher: Launcher,
    arguments: list[str],
    on_existing: str | None,
    *,
    quiet: bool,
) -> bool:
    """Start a launcher and wait until it is ready; ends the process with its exit code if it
    will not be."""
    environ = {**os.environ, **to_environ(resolved.overrides())}
    if on_existing is None and not quiet and sys.stdin.isatty() and sys.stdout.isatty():
        on_existing = _asked(resolved)
    policy = ["--on-existing", on_existing] if on_existing else []
    daemon = Daemon.spawn(launcher, [*policy, *arguments], environ)
    code = daemon.wait_ready((lambda line: None) if quiet else click.echo)
    if code is None or launcher.pid() is not None:  # another one was quicker
        return True
    click.echo(daemon.failure(), nl=False, err=True)
    sys.exit(code or 1)


def _asked(resolved: Resolved) -> str | None:
    """What a person wants done with workers that run already; None if there are none."""
    ask: Callable[[Resolved], str | None] = _heavy("cloche.cli.existing", "ask_about")
    return ask(resolved)


def _foreground(resolved: Resolved, chosen: dict[str, Any], *, detached: bool) -> int:
    run: Callable[..., int] = _heavy("cloche.cli.up", "run_launcher")
    return run(resolved, chosen, detached=detached)


def _heavy(module: str, name: str) -> Any:
    """What brings Celery with it: not needed to find that all runs already."""
    return getattr(import_module(module), name)
