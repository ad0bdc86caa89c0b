"""``cloche logs query``, ``trace``, ``summary``, ``errors``: questions to the execution log."""

from __future__ import annotations

from uuid import UUID

import click

from cloche.cli.logs_filter import filter_options, reading
from cloche.cli.logs_lines import line_of, show, table, took, write_json
from cloche.cli.options import json_option, settings_options
from cloche.errors import ClocheError
from cloche.logs.filter import LogFilter
from cloche.logs.read import PAGE
from cloche.logs.trace import StepTrace, Trace
from cloche.settings import Resolved

_WIDTH = 40  # columns of a bar in a trace


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
            f"nothing is logged of run {run}",
            why="it wrote nothing, or its records have expired, or they are still under way",
            fix="see the newest records: cloche logs query",
        )
    if as_json:
        write_json(found)
        return
    levels = ", ".join(f"{count} {level}" for level, count in found.levels.items())
    more = "" if found.complete else ", and more: these are its first"
    click.echo(
        f"run {run}: {found.status or 'no status'}, {took(found.seconds * 1000)}, "
        f"{found.total} records ({levels}){more}"
    )
    if found.steps:
        table(
            {"step": "left", "": "left", "took": "right", "records": "right", "state": "left"},
            (_step_row(found, step) for step in found.steps),
        )
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
    click.echo(f"{found.total} records{_period(found.since, found.until)}")
    for name, counts in (
        ("levels", found.levels),
        ("categories", found.categories),
        ("agents", found.agents),
    ):
        click.echo(f"{name:<11} {', '.join(f'{key} {n}' for key, n in counts.items()) or 'none'}")
    if found.steps:
        click.echo()
        headings = ("times", "errors", "p50", "p95", "slowest", "together")
        table(
            {"step": "left", **dict.fromkeys(headings, "right")},
            (
                (step.step, step.count, step.errors, *map(took, (step.p50, step.p95)),
                 *map(took, (step.slowest, step.total)))
                for step in found.steps
            ),
        )  # fmt: skip


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
    table(
        {"count": "right", "first": "left", "last": "left", "where": "left", "error": "left"},
        (
            (
                group.count,
                f"{group.first:%m-%d %H:%M:%S}",
                f"{group.last:%m-%d %H:%M:%S}",
                " ".join(part for part in (group.category, group.step) if part),
                group.message,
            )
            for group in found.groups
        ),
    )
    more = "" if found.complete else ", the newest: there are more"
    kinds = len(found.groups)
    click.echo(
        f"{found.total} errors of {kinds} kind{'s' * (kinds != 1)}"
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


def _step_row(trace: Trace, step: StepTrace) -> tuple[object, ...]:
    name = "  " * step.depth + step.name
    duration = took(step.busy_ms) if step.finished else took(1000 * (step.last - step.first))
    state = step.state if not step.retries else f"{step.state}, {step.retries} tried again"
    return name, _bar(trace, step), duration, step.records, state


def _bar(trace: Trace, step: StepTrace) -> str:
    scale = _WIDTH / max(trace.seconds, 0.001)
    begin = min(int((step.first - trace.first) * scale), _WIDTH - 1)
    length = max(1, min(round((step.last - step.first) * scale), _WIDTH - begin))
    return "·" * begin + "━" * length + "·" * (_WIDTH - begin - length)
