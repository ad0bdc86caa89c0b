"""``cloche logs``: what the processes print, and the execution log."""

from __future__ import annotations

from typing import ClassVar

import click

from cloche.cli.lazy import Lazy, LazyGroup


class Logs(LazyGroup):
    """Each command is a module of its own; a first word that is none of them names a process:
    ``output``."""

    commands_by_name: ClassVar[dict[str, Lazy]] = {
        "output": Lazy("cloche.cli.output:output", "What the processes print (the default)."),
        "query": Lazy("cloche.cli.logs_read:query", "Show the newest records that fit."),
        "trace": Lazy("cloche.cli.logs_read:trace", "Tell a run: its steps on a scale of time."),
        "summary": Lazy("cloche.cli.logs_read:summary", "Count records; time the steps."),
        "errors": Lazy("cloche.cli.logs_read:errors", "Group errors that are alike."),
        "tail": Lazy("cloche.cli.logs_read:tail", "Show records as they arrive."),
        "export": Lazy("cloche.cli.logs_read:export", "Write records as JSON lines or CSV."),
        "expire": Lazy("cloche.cli.logs_admin:expire_command", "Remove what is old."),
        "spool": Lazy("cloche.cli.logs_admin:spool", "What waits on this machine's disk; send it."),
        "fallback": Lazy(
            "cloche.cli.logs_admin:fallback", "Where records go while the broker is away."
        ),
    }
    default = "output"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = next(iter(args), "")
        if first not in self.commands_by_name and first not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands_by_name:
            args = [self.default, *args]
        return super().resolve_command(ctx, args)


@click.group(cls=Logs, no_args_is_help=False)
def logs() -> None:
    """What the processes print; and the execution log: what tasks and workflows said.

    \b
    Examples:
      $ cloche logs worker -f                 # as `cloche logs output worker -f`
      $ cloche logs -n 20
      $ cloche logs query --level error --since 1h  # the execution log
      $ cloche logs trace RUN

    Run `cloche logs COMMAND --help` for the options, examples and exit codes of a command.
    """
