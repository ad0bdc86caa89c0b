"""``cloche logs``: what the processes print."""

from __future__ import annotations

from typing import ClassVar

import click

from cloche.cli.lazy import Lazy, LazyGroup


class Logs(LazyGroup):
    """Its commands; a first word that is none of them names a process: ``output``."""

    commands_by_name: ClassVar[dict[str, Lazy]] = {
        "output": Lazy("cloche.cli.output:output", "What the processes print (the default)."),
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
    """Show what the processes print.

    \b
    Examples:
      $ cloche logs worker -f                        # as `cloche logs output worker -f`
      $ cloche logs -n 20
    """
