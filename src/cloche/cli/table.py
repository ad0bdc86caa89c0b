"""Tables that fit the terminal: where it is narrow, the less important columns go."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from cloche.plain import printable

#: A row, by field.
Row = Mapping[str, Any]
_GAP = "  "
#: Columns that stay however narrow the terminal is; their cells are cut.
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Column:
    """``importance``: the least important columns go first where there is no room."""

    title: str
    cell: Callable[[Row], str]
    importance: int = 0
    right: bool = False


def columns(names: str) -> list[Column]:
    """Columns of rows whose fields are texts, the most important first."""
    return [
        Column(name.upper(), lambda row, name=name: row[name], -place)  # type: ignore[misc]
        for place, name in enumerate(names.split())
    ]


def write_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Titles and cells; on a terminal no line is longer than it is wide.

    There a text that takes more than half of it is cut, then columns are left out. Not on a
    terminal everything is written, whatever the width.
    """
    cells = {column: [printable(column.cell(row)) for row in rows] for column in columns}
    widths = {column: max(map(cell_len, (column.title, *cells[column]))) for column in columns}
    if sys.stdout.isatty():
        widths = _fitting(widths, shutil.get_terminal_size().columns)
    lines = [tuple(column.title for column in widths)]
    lines += zip(*(cells[column] for column in widths), strict=True)
    for number, line in enumerate(lines):
        padded = (
            _padded(cell, room, right=column.right)
            for cell, (column, room) in zip(line, widths.items(), strict=True)
        )
        write_line(_GAP.join(padded).rstrip(), bold=number == 0)


def _fitting(widths: dict[Column, int], width: int) -> dict[Column, int]:
    """The columns that are shown, and how wide."""
    widths = dict(widths)
    while (over := _over(widths, width)) > 0:
        room = {column: most - width // 2 for column, most in widths.items() if not column.right}
        if sum(cut for cut in room.values() if cut > 0) >= over:
            _cut(widths, over, [column for column, cut in room.items() if cut > 0], width // 2)
        elif len(widths) > _LEAST:
            del widths[min(widths, key=lambda column: column.importance)]
        else:
            _cut(widths, over, list(widths), 1)
            break
    return widths


def _over(widths: Mapping[Column, int], width: int) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1) - width


def _cut(widths: dict[Column, int], over: int, columns: Sequence[Column], least: int) -> None:
    """Take ``over`` from these, always from the widest, as long as one is wider than ``least``."""
    for _ in range(over):
        widest = max(columns, key=lambda column: widths[column])
        if widths[widest] > least:
            widths[widest] -= 1


def _padded(cell: str, room: int, *, right: bool) -> str:
    """Columns of a terminal are counted, of which a Chinese letter takes two."""
    if cell_len(cell) > room:
        cell = f"{set_cell_size(cell, room - 1)}…"
    space = " " * (room - cell_len(cell))
    return space + cell if right else cell + space


def write_line(text: str, *, colour: str | None = None, bold: bool = False) -> None:
    """A line, styled where colours are wanted: a terminal, no NO_COLOR (no-color.org)."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    click.echo(text if plain else click.style(text, fg=colour, bold=bold or None))
