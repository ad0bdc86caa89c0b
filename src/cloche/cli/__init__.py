"""The ``cloche`` command: one group; every error one clear message and a documented exit code."""

from __future__ import annotations

import os
import sys
import time
import traceback
from importlib import import_module
from typing import ClassVar, NoReturn

import click

from cloche.cli.lazy import Lazy, LazyGroup
from cloche.errors import ClocheError
from cloche.launch import collector
from cloche.plain import printable

#: The monotonic time at which this process began to be Cloche.
STARTED = time.monotonic()
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class CommandGroup(LazyGroup):
    """All commands; adding one is adding its line."""

    commands_by_name: ClassVar[dict[str, Lazy]] = {
        "up": Lazy("cloche.cli.up:up", "Start everything and stop it on Ctrl-C."),
        "start": Lazy(
            "cloche.cli.start:start",
            "Start workers and scheduler in the background, or what is NAMEd.",
        ),
        "stop": Lazy(
            "cloche.cli.stop:stop", "Stop everything, or what is NAMEd, and wait until it is gone."
        ),
        "restart": Lazy(
            "cloche.cli.restart:restart",
            "Start anew what is NAMEd, or everything but the broker, with the code of now.",
        ),
        "scale": Lazy("cloche.cli.scale:scale", "Let worker NAME have N processes."),
        "ps": Lazy(
            "cloche.cli.ps:ps", "Show every process: state, since when, queues, pool, load, tasks."
        ),
        "logs": Lazy(
            "cloche.cli.logs:logs",
            "What the processes print; and the execution log: what tasks and workflows said.",
        ),
        "wait": Lazy(
            "cloche.cli.wait:wait",
            "Wait until what was started is ready, also if nothing was started yet.",
        ),
        "worker": Lazy("cloche.cli.worker:worker", "Run one worker in the foreground."),
        "beat": Lazy("cloche.cli.beat:beat", "Run the scheduler in the foreground."),
        "service": Lazy(
            "cloche.cli.service:service", "Serve downloads: a page for people, an API for programs."
        ),
        "dashboard": Lazy(
            "cloche.cli.dashboard:dashboard",
            "Show health, workers, queues and recent tasks on a web page.",
        ),
        "health": Lazy(
            "cloche.cli.health:health", "Tell whether everything works; exit code 0 or 1."
        ),
        "tasks": Lazy(
            "cloche.cli.tasks:tasks", "List registered tasks: module, queue, limits, retries."
        ),
        "schedules": Lazy(
            "cloche.cli.schedules:schedules", "List schedules: next, last and missed runs."
        ),
        "flower": Lazy(
            "cloche.cli.flower:flower", "Run Flower on the application, with a generated password."
        ),
        "dlq": Lazy("cloche.cli.dlq:dlq", "List, show, retry and purge dead letters."),
        "config": Lazy("cloche.cli.config:config", "Show, explain, check and write settings."),
    }


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        # Importing it takes as long as all of click (35 of 68 ms of `cloche --help`).
        from importlib.metadata import version  # noqa: PLC0415

        click.echo(f"cloche {version('cloche')}")
        ctx.exit()


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run `cloche COMMAND --help` for the options, examples and exit codes of a command.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option(
    "--debug", is_flag=True, envvar="CLOCHE_DEBUG", help="Show the traceback of an error."
)
@click.pass_context
def cloche(ctx: click.Context, debug: bool) -> None:
    """The production layer for Celery: runs it, shows it, keeps it alive, makes it fast."""
    ctx.obj = debug


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run ``cloche`` with ``arguments`` (default: those of the process) and exit."""
    collector.pause()
    # The group's context is gone when an error arrives here, so the choice is read beforehand.
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(words, debug="--debug" in words or _debug_variable()))


def _debug_variable() -> bool:
    return os.environ.get("CLOCHE_DEBUG", "").lower() in ("1", "true", "yes", "on")


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        code = cloche.main(arguments, prog_name="cloche", standalone_mode=False)
    except ClocheError as error:
        _report(error, debug=debug)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        # Named, not imported: it brings all the libraries whose errors it knows.
        found: ClocheError | None = import_module("cloche.cli.failures").explained(error)
        if found is None:
            raise
        _report(found, debug=debug)
        return found.exit_code
    return code if isinstance(code, int) else 0


def _report(error: ClocheError, *, debug: bool) -> None:
    """The error on stderr: its label in colour on a terminal, its traceback only when asked."""
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True)
    # Line by line: what a message quotes may hold control characters.
    text = "\n".join(printable(line) for line in str(error).split("\n"))
    click.echo(f"{click.style('error:', fg='red', bold=True)} {text}", err=True)
