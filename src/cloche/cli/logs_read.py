"""``cloche logs query``, ``trace``, ``summary``, ``errors``, ``tail``, ``export``: reading it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import IO, Any, TypeVar, get_args
from uuid import UUID

import click
import orjson

from cloche.cli.options import for_database, json_option, settings_options
from cloche.cli.table import Column, Row, write_table
from cloche.database import Database
from cloche.errors import ClocheError
from cloche.logs.read.document import Format, dumped, exported
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import PAGE, LogReader
from cloche.logs.read.tail import MAX_RECORDS, RecordTail, look
from cloche.logs.read.trace import StepTrace, Trace
from cloche.logs.record import LEVELS, LogRecord
from cloche.plain import printable
from cloche.settings import Resolved

_COLOURS = {
    "debug": "bright_black", "info": "blue", "warning": "yellow", "error": "red",
    "critical": "magenta",
}  # fmt: skip

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--run", metavar="ID", help="Records of this run."),
    click.option("--task", metavar="ID", help="Records of this task."),
    click.option("--concept", metavar="ID", help="Records of this concept."),
    click.option("--level", type=click.Choice([*LEVELS]), help="Of this level or worse."),
    click.option("--category", metavar="NAME", help="Of this category."),
    click.option("--step", metavar="NAME", help="Of this step and the steps inside it."),
    click.option("--agent", metavar="NAME", help="Of this agent."),
    click.option("--since", metavar="TIME", help="From then on: 15m, 2h, 7d, 2026-11-25T08:00."),
    click.option("--until", metavar="TIME", help="Before then, written the same way; UTC."),
    click.option("--text", metavar="WORDS", help='Words of the message; "in quotes" as they are.'),
)

#: Columns of a bar in a trace: on a terminal of 100 columns or in a file, and on others.
_WIDTH, _NARROW = 40, 20

_LOOK_INTERVAL = 0.5  # seconds between looks


def show(record: LogRecord) -> None:
    """One record as a line; further lines of its message and its traceback below it, indented, so
    that none looks like a record."""
    click.echo(line_of(record))
    traceback = (record.details or {}).get("traceback")
    if isinstance(traceback, str) and traceback:
        lines = (f"    {printable(line)}" for line in traceback.splitlines())
        click.echo(click.style("\n".join(lines), dim=True))


def line_of(record: LogRecord) -> str:
    """``2026-11-25 12:00:01.123 ERROR    llm write/draft: no answer (writer) 120 ms  run=r1``."""
    level = click.style(f"{record.level.upper():<8}", fg=_COLOURS[record.level])
    where = " ".join(printable(part) for part in (record.category, record.step) if part)
    message = "\n    ".join(printable(line) for line in record.message.splitlines())
    parts = [
        f"{record.time:%Y-%m-%d %H:%M:%S}.{record.time.microsecond // 1000:03d}",
        level,
        f"{click.style(where, dim=True)}: {message}",
    ]
    if record.agent:
        parts.append(f"({printable(record.agent)})")
    if record.duration_ms is not None:
        parts.append(took(record.duration_ms))
    known = {"run": record.run_id, "task": record.task_id, "concept": record.concept_id}
    parts += [
        click.style(f"{key}={printable(value)}", dim=True) for key, value in known.items() if value
    ]
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


def counted(number: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def filter_options(command: _Command) -> _Command:
    """Add them; the command is called with ``wanted`` instead. Raises LogQueryError."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        fields = {name: kwargs.pop(name) for name in LogFilter.model_fields}
        return command(*args, wanted=LogFilter.of(**fields), **kwargs)

    wrapped: Any = run
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@contextmanager
def reading(resolved: Resolved) -> Iterator[LogReader]:
    """A reader of the database that the settings name."""
    database = Database(for_database(resolved).settings)
    try:
        yield LogReader(database)
    finally:
        database.close()


@click.command()
@filter_options
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, PAGE), help="At most."
)
@click.option("--before", type=click.UUID, help="Only records older than the one of this id.")
@json_option
@settings_options
def query(
    resolved: Resolved, wanted: LogFilter, limit: int, before: UUID | None, as_json: bool
) -> None:
    """Show the newest records that fit, the newest last.

    Exit codes: 0 also when nothing fits, 2 a filter or setting is wrong, 6 database.

    \b
    Examples:
      $ cloche logs query --level error --since 2h
      $ cloche logs query --run roadmap-42 --step write
      $ cloche logs query --text 'refused "order 42"' --limit 5 --json
    """
    with reading(resolved) as reader:
        page = reader.page(wanted, limit=limit, before=before)
    if as_json:
        write_json({"records": page.records, "older": page.older})
        return
    for record in reversed(page.records):
        show(record)
    if not page.records:
        click.echo("nothing fits", err=True)
    elif page.older is not None:
        click.echo(f"there is more: --before {page.older}", err=True)


@click.command()
@click.argument("run")
@json_option
@settings_options
def trace(resolved: Resolved, run: str, as_json: bool) -> None:
    """Tell a run: its steps on a scale of time, silences, errors.

    Exit codes: 0, 1 there is no such run, 2 a setting is wrong, 6 database.

    \b
    Examples:
      $ cloche logs trace roadmap-42
      $ cloche logs trace roadmap-42 --json
    """
    with reading(resolved) as reader:
        found = reader.trace(run)
    if found is None:
        raise ClocheError(
            f"nothing is logged of run {printable(run)}",
            why="it wrote nothing, or its records have expired, or they are still under way",
            fix="see the newest records: cloche logs query",
        )
    if as_json:
        write_json(found)
        return
    levels = ", ".join(f"{count} {level}" for level, count in found.levels.items())
    more = "" if found.complete else ", and more: these are its first"
    click.echo(
        f"run {printable(run)}: {printable(found.status or 'no status')}, "
        f"{took(found.seconds * 1000)}, {counted(found.total, 'record')} ({levels}){more}"
    )
    if found.steps:
        write_table(_TRACE, [_step_row(found, step) for step in found.steps])
    for gap in found.gaps:
        after = gap.since - found.first
        click.echo(
            f"nothing was heard for {took(gap.seconds * 1000)}, {after:.1f} s after the start"
        )
    for record in found.records:
        if record.level in ("error", "critical"):
            click.echo(line_of(record))


@click.command()
@filter_options
@json_option
@settings_options
def summary(resolved: Resolved, wanted: LogFilter, as_json: bool) -> None:
    """Count records by level, category and agent; time the steps.

    Without --run, --task or --since: of the last 24 hours. Percentiles are durations that
    occurred (nearest rank).

    Exit codes: 0, 2 a filter or setting is wrong, 6 database.

    \b
    Examples:
      $ cloche logs summary
      $ cloche logs summary --run roadmap-42 --json
    """
    with reading(resolved) as reader:
        found = reader.summary(wanted)
    if as_json:
        write_json(found)
        return
    click.echo(f"{counted(found.total, 'record')}{_period(found.since, found.until)}")
    for name, counts in (
        ("levels", found.levels),
        ("categories", found.categories),
        ("agents", found.agents),
    ):
        shown = ", ".join(f"{printable(key)} {count}" for key, count in counts.items())
        click.echo(f"{name:<11} {shown or 'none'}")
    if found.steps:
        click.echo()
        rows = [
            {"step": step.step, "times": step.count, "errors": step.errors, "p50": took(step.p50),
             "p95": took(step.p95), "slowest": took(step.slowest), "together": took(step.total)}
            for step in found.steps
        ]  # fmt: skip
        write_table(_SUMMARY, rows)


@click.command()
@filter_options
@json_option
@settings_options
def errors(resolved: Resolved, wanted: LogFilter, as_json: bool) -> None:
    """Group errors that are alike: how often, first, last, an example.

    Alike are errors of the same category and step whose messages differ only in ids, numbers and
    quoted texts. Without --run, --task or --since: of the last 24 hours.

    Exit codes: 0 also when there are none, 2 a filter or setting is wrong, 6 database.

    \b
    Examples:
      $ cloche logs errors
      $ cloche logs errors --since 7d --category llm --json
    """
    with reading(resolved) as reader:
        found = reader.errors(wanted)
    if as_json:
        write_json(found)
        return
    rows = [
        {
            "count": group.count,
            "first": f"{group.first:%m-%d %H:%M:%S}",
            "last": f"{group.last:%m-%d %H:%M:%S}",
            "where": " ".join(part for part in (group.category, group.step) if part),
            "error": group.message,
        }
        for group in found.groups
    ]
    if rows:
        write_table(_ERRORS, rows)
    more = "" if found.complete else ", the newest: there are more"
    click.echo(
        f"{counted(found.total, 'error')} of {counted(len(found.groups), 'kind')}"
        f"{_period(found.since, found.until)}{more}",
        err=True,
    )


def _period(since: object, until: object) -> str:
    words = [
        f" {word} {moment:%Y-%m-%d %H:%M:%S} UTC"
        for word, moment in (("since", since), ("until", until))
        if moment is not None
    ]
    return "".join(words)


def _column(name: str, importance: int, *, right: bool = False) -> Column:
    return Column(name.upper(), lambda row: str(row[name]), importance, right)


#: On a narrow terminal the least important go, and what stays is cut.
_TRACE = (
    _column("step", 9),
    Column("", lambda row: str(row["bar"]), 3),
    _column("took", 8, right=True),
    _column("records", 1, right=True),
    _column("state", 5),
)
_SUMMARY = (
    _column("step", 9),
    _column("times", 6, right=True),
    _column("errors", 7, right=True),
    _column("p50", 4, right=True),
    _column("p95", 8, right=True),
    _column("slowest", 2, right=True),
    _column("together", 1, right=True),
)
_ERRORS = (
    _column("count", 8, right=True),
    _column("first", 1),
    _column("last", 2),
    _column("where", 3),
    _column("error", 9),
)


def _step_row(trace: Trace, step: StepTrace) -> Row:
    duration = took(step.busy_ms) if step.finished else took(1000 * (step.last - step.first))
    return {
        "step": "  " * step.depth + step.name,
        "bar": _bar(trace, step),
        "took": duration,
        "records": step.records,
        "state": step.state if not step.retries else f"{step.state}, {step.retries} tried again",
    }


def _bar(trace: Trace, step: StepTrace) -> str:
    roomy = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= 100
    width = _WIDTH if roomy else _NARROW
    scale = width / max(trace.seconds, 0.001)
    begin = min(int((step.first - trace.first) * scale), width - 1)
    length = max(1, min(round((step.last - step.first) * scale), width - begin))
    return "·" * begin + "━" * length + "·" * (width - begin - length)


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
        following = RecordTail()
        for record in reversed(reader.page(wanted, limit=lines).records if lines else ()):
            following.saw(record)
            write(record)
        while True:
            news = look(reader, wanted, following)
            if news.skipped:
                click.echo(f"more arrived; these are the newest {MAX_RECORDS}", err=True)
            for record in news.records:
                write(record)
            sys.stdout.flush()
            time.sleep(_LOOK_INTERVAL)


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
