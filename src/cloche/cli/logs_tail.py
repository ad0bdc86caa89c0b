"""``cloche logs tail`` and ``export``: records as they arrive, records as a file."""

from __future__ import annotations

import sys
import time
from typing import IO, get_args

import click

from cloche.cli.logs_filter import filter_options, reading
from cloche.cli.logs_lines import show, write_json_line
from cloche.cli.options import json_option, settings_options
from cloche.logs.document import Format, exported
from cloche.logs.filter import LogFilter
from cloche.logs.read import PAGE
from cloche.logs.tail import MOST, Tail, look
from cloche.settings import Resolved

_PAUSE = 0.5  # seconds between looks


@click.command()
@filter_options
@click.option("-n", "--lines", default=10, show_default=True, type=click.IntRange(0, PAGE),
              help="Records that are there already, shown first.")  # fmt: skip
@json_option
@settings_options
def tail(resolved: Resolved, wanted: LogFilter, lines: int, as_json: bool) -> None:
    """Show records as they arrive, until Ctrl-C.

    Exit codes: 130 interrupted, 1 whoever read the output went away, 2 a filter or setting is
    wrong, 6 database.

    \b
    Examples:
      $ cloche logs tail
      $ cloche logs tail --run roadmap-42 --level warning
      $ cloche logs tail -n 0 --json
    """
    write = write_json_line if as_json else show
    with reading(resolved) as reader:
        following = Tail()
        for record in reversed(reader.page(wanted, limit=lines).records if lines else ()):
            following.saw(record)
            write(record)
        while True:
            news = look(reader, wanted, following)
            if news.skipped:
                click.echo(f"more arrived; these are the newest {MOST}", err=True)
            for record in news.records:
                write(record)
            sys.stdout.flush()
            time.sleep(_PAUSE)


@click.command()
@filter_options
@click.option("--format", "form", type=click.Choice(get_args(Format)), default="jsonl",
              show_default=True, help="JSON lines hold every field as it is.")  # fmt: skip
@click.option("-o", "--output", type=click.File("wb", lazy=True), default="-", help="A file.")
@settings_options
def export(resolved: Resolved, wanted: LogFilter, form: Format, output: IO[bytes]) -> None:
    """Write all records that fit, oldest first, as JSON lines or CSV.

    In CSV a cell that a spreadsheet would take for a formula gets an apostrophe in front.

    Exit codes: 0, 2 a filter or setting is wrong, 6 database.

    \b
    Examples:
      $ cloche logs export --since 7d -o week.jsonl
      $ cloche logs export --run roadmap-42 --format csv > run.csv
    """
    with reading(resolved) as reader:
        for piece in exported(reader.stream(wanted), form):
            output.write(piece)
