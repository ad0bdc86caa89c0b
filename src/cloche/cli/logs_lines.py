"""Records and figures as lines and tables of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from cloche.logs.document import dumped
from cloche.logs.record import LogRecord

_COLOURS = {
    "debug": "bright_black", "info": "blue", "warning": "yellow", "error": "red",
    "critical": "magenta",
}  # fmt: skip
#: Columns where the output is no terminal: nothing is cut for a file.
_WIDE = 200


def show(record: LogRecord) -> None:
    """One record as a line; its traceback, if it has one, below it."""
    click.echo(line_of(record))
    traceback = (record.details or {}).get("traceback")
    if traceback:
        click.echo(
            click.style("".join(f"    {line}\n" for line in traceback.splitlines()), dim=True)
        )


def line_of(record: LogRecord) -> str:
    """``2026-11-25 12:00:01.123 ERROR    llm write/draft: no answer (writer) 120 ms  run=r1``."""
    level = click.style(f"{record.level.upper():<8}", fg=_COLOURS[record.level])
    where = " ".join(part for part in (record.category, record.step) if part)
    parts = [
        f"{record.time:%Y-%m-%d %H:%M:%S}.{record.time.microsecond // 1000:03d}",
        level,
        f"{click.style(where, dim=True)}: {record.message}",
    ]
    if record.agent:
        parts.append(f"({record.agent})")
    if record.duration_ms is not None:
        parts.append(took(record.duration_ms))
    known = {"run": record.run_id, "task": record.task_id, "concept": record.concept_id}
    parts += [click.style(f"{key}={value}", dim=True) for key, value in known.items() if value]
    return " ".join(parts)


def took(milliseconds: float) -> str:
    """``0.4`` -> ``0.4 ms``, ``1500`` -> ``1.50 s``, ``90000`` -> ``90 s``."""
    if milliseconds < 1000:
        return f"{milliseconds:.3g} ms"
    return (
        f"{milliseconds / 1000:.2f} s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"
    )


def write_json(value: object) -> None:
    """As the JSON API answers, indented."""
    click.echo(orjson.dumps(orjson.loads(dumped(value)), option=orjson.OPT_INDENT_2))


def write_json_line(record: LogRecord) -> None:
    """One record on one line, at once."""
    click.echo(dumped(record))


def table(headings: Mapping[str, str], rows: Iterable[Iterable[Any]], title: str = "") -> None:
    """A table; a heading's value is ``left`` or ``right``."""
    view = Table(box=None, pad_edge=False, title=title or None, title_justify="left")
    for heading, justify in headings.items():
        view.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        view.add_row(*map(str, row))
    width = None if sys.stdout.isatty() else _WIDE
    Console(highlight=False, markup=False, width=width, soft_wrap=False).print(view)
