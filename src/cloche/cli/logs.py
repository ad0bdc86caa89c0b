"""``cloche logs``: the execution log."""

from __future__ import annotations

from typing import ClassVar

import click

from cloche.cli.lazy import Lazy, LazyGroup


class LogCommands(LazyGroup):
    """Each command is a module of its own."""

    commands_by_name: ClassVar[dict[str, Lazy]] = {
        "query": Lazy("cloche.cli.logs_read:query", "Show the newest records that fit."),
        "trace": Lazy("cloche.cli.logs_read:trace", "Tell a run: its steps on a scale of time."),
        "summary": Lazy("cloche.cli.logs_read:summary", "Count records; time the steps."),
        "errors": Lazy("cloche.cli.logs_read:errors", "Group errors that are alike."),
        "tail": Lazy("cloche.cli.logs_tail:tail", "Show records as they arrive."),
        "export": Lazy("cloche.cli.logs_tail:export", "Write records as JSON lines or CSV."),
        "expire": Lazy("cloche.cli.logs_expire:expire_command", "Remove what is old."),
        "spool": Lazy("cloche.cli.logs_spool:spool", "What waits on this machine's disk; send it."),
        "fallback": Lazy(
            "cloche.cli.logs_fallback:fallback", "Where records go while the broker is away."
        ),
    }


@click.group(
    cls=LogCommands,
    epilog="Run `cloche logs COMMAND --help` for the options and examples of a command.",
)
def logs() -> None:
    """The execution log: read it, send what waits on disk."""
