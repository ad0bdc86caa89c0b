"""Tables that fit the terminal: where it is narrow, the less important columns go."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

#: A row, by field.
Row = Mapping[str, Any]
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """``importance``: the least important columns go first where there is no room."""

    title: str
    cell: Callable[[Row], str]
    importance: int = 0
    right: bool = False


def write_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Titles and cells; on a terminal no line is longer than it is wide.

    Not on a terminal everything is written, whatever the width.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown = list(columns)
    while width is not None and len(shown) > 1 and _width(shown, rows) > width:
        shown.remove(min(shown, key=lambda column: column.importance))
    lines = [[column.title for column in shown], *([c.cell(row) for c in shown] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(shown))]
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(room) if column.right else cell.ljust(room)
            for cell, room, column in zip(line, widths, shown, strict=True)
        ]
        text = _GAP.join(cells).rstrip()
        write_line(text[:width] if width else text, bold=number == 0)


def write_line(text: str, *, colour: str | None = None, bold: bool = False) -> None:
    """A line, styled where colours are wanted: a terminal, no NO_COLOR (no-color.org)."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    click.echo(text if plain else click.style(text, fg=colour, bold=bold or None))


def _width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    return sum(
        max(len(column.title), *(len(column.cell(row)) for row in rows), 0) for column in columns
    ) + len(_GAP) * (len(columns) - 1)
