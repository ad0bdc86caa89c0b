"""``cloche ps``: every process of the stack, and every worker beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from cloche.cli.attach import launcher_of
from cloche.cli.options import json_option, settings_options
from cloche.cli.table import Column, Row, write_line, write_table
from cloche.errors import NotRunningError
from cloche.plain import printable
from cloche.settings import Resolved


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
@settings_options
def ps(resolved: Resolved, names: tuple[str, ...], as_json: bool) -> None:
    """Show every process: state, since when, queues, pool, load, tasks.

    KIND "adopted" is a worker that others started and Cloche counts, "foreign" one it does
    not, "elsewhere" one of another machine or user at the same broker. CPU is percent of one
    core over the time the workers took to answer, RSS with all child processes. DONE counts
    tasks since the worker's start.

    \b
    Examples:
      $ cloche ps
      $ cloche ps worker beat
      $ cloche ps --json

    Exit codes: 0 shown (also: nothing runs), 2 settings.
    """
    try:
        answer = launcher_of(resolved).ask({"do": "ps"}, timeout=30)
    except NotRunningError:
        answer = _without_launcher(resolved)
    rows = [row for row in answer["processes"] if not names or _named(row, names)]
    if as_json:
        click.echo(json.dumps({**answer, "processes": rows}, indent=2, ensure_ascii=False))
        return
    if not rows:
        click.echo(f"nothing runs in {resolved.settings.run_dir.absolute()}")
    else:
        write_table(_COLUMNS, rows)
    for row in rows:
        _write_details(row)
    for gap in answer["gaps"]:
        click.echo(gap)


def _without_launcher(resolved: Resolved) -> dict[str, Any]:
    seen: Callable[[Resolved], dict[str, Any]] = import_module("cloche.launch.discovery").seen
    return seen(resolved)


def _named(row: Row, names: tuple[str, ...]) -> bool:
    return any(name in (row["name"], row["node"], row["name"].rpartition("-")[0]) for name in names)


def _write_details(row: Row) -> None:
    """What a table has no room for: the end of a crash, a stop under way."""
    if row["last_lines"]:
        write_line(f"{row['name']}: {row['state']}, exit code {row['exit_code']}", colour="red")
        for line in row["last_lines"]:
            click.echo(f"    {printable(line)}")
    if row["was_hung"]:
        write_line(printable(f"{row['name']}: {row['was_hung']}"), colour="yellow")
    for task in row["tasks"]:
        click.echo(printable(f"{row['name']}: still runs {task['name']} [{task['id']}]"))


def _age(row: Row) -> str:
    """``3d4h``, ``12m``, ``7s``: short, for a column."""
    if row["since"] is None:
        return "-"
    seconds = max(0, int(time.time() - row["since"]))
    for size, unit, inner, inner_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // inner}{inner_unit}"
    return f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s"


def _or_dash(key: str, form: Callable[[Any], str] = str) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else form(row[key])


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f}M"


def _queues(row: Row) -> str:
    return ",".join(row["queues"]) or "-"


_COLUMNS = (
    Column("NAME", lambda row: row["name"], 99),
    Column("KIND", lambda row: row["kind"], 30),
    Column("STATE", lambda row: row["state"], 98),
    Column("PID", _or_dash("pid"), 90, right=True),
    Column("SINCE", _age, 80, right=True),
    Column("QUEUES", _queues, 40),
    Column("POOL", _or_dash("pool"), 20),
    Column("CONC", _or_dash("concurrency"), 25, right=True),
    Column("CPU%", _or_dash("cpu", lambda cpu: f"{cpu:.0f}"), 50, right=True),
    Column("RSS", _or_dash("rss", _mib), 55, right=True),
    Column("RESTARTS", _or_dash("restarts"), 35, right=True),
    Column("ACTIVE", _or_dash("active"), 60, right=True),
    Column("DONE", _or_dash("processed"), 58, right=True),
)
