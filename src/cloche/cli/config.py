"""``cloche config``: every setting with its origin."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from cloche.cli.options import given, json_option, of_application, settings_options, warn
from cloche.errors import AppError, SettingsError
from cloche.plain import printable
from cloche.settings import Resolved, load
from cloche.settings.reference import defaults_markdown, markdown, template
from cloche.settings.views import CeleryKey, Explanation, SettingRow, explain, rows

_FILE = "cloche.toml"


@click.group()
def config() -> None:
    """Show, explain, check and write settings.

    \b
    Examples:
      $ cloche config show --changed --origin
      $ cloche config explain broker.url
    """


@config.command()
@click.option("--origin", is_flag=True, help="Show where each value came from.")
@click.option("--changed", is_flag=True, help="Only what somebody set.")
@json_option
@settings_options
def show(resolved: Resolved, as_json: bool, origin: bool, changed: bool) -> None:
    """Show every setting, passwords hidden.

    Exit codes: 0 shown, 2 settings.

    \b
    Examples:
      $ cloche config show
      $ cloche config show --origin --changed
      $ cloche config show --set broker.connect_timeout=2s --json
    """
    resolved = _with_application(resolved)
    chosen = [row for row in rows(resolved) if not changed or row.origin.kind != "default"]
    if as_json:
        _write_json({row.key: _with_origin(row) for row in chosen})
    elif origin:
        _write_table((row.key, _text(row.value), str(row.origin)) for row in chosen)
    else:
        _write_table((row.key, _text(row.value)) for row in chosen)


@config.command("explain")
@click.argument("key")
@json_option
@settings_options
def explain_key(resolved: Resolved, as_json: bool, key: str) -> None:
    """Explain where the value of KEY came from and what it becomes.

    Exit codes: 0 shown, 2 settings, or there is no such key.

    \b
    Examples:
      $ cloche config explain broker.url
      $ cloche config explain families.download.time_limit
      $ cloche config explain stop.grace --json
    """
    explanation = explain(_with_application(resolved), key)
    if as_json:
        _write_json(explanation.as_dict())
    else:
        _write_explanation(explanation)


@config.command()
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As if it were set.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def validate(assignments: tuple[str, ...], as_json: bool) -> None:
    """Check all settings, and tell every problem.

    Exit codes: 0 they are valid, 2 something is wrong.

    \b
    Examples:
      $ cloche config validate
      $ cloche config validate --set workers.main.concurrency=8
    """
    try:
        resolved = load(given({}, assignments))
        if resolved.origin("app").kind == "default":
            resolved = load(given({}, assignments), guest=False)
    except SettingsError as error:
        if as_json:
            _write_json({"ok": False, "problems": list(error.problems)})
        raise
    warn(resolved)
    if as_json:
        _write_json({"ok": True, "problems": []})
    else:
        click.echo(f"settings are valid, {len(resolved.changed())} set")


@config.command()
@click.option("--force", is_flag=True, help="Overwrite a cloche.toml that is there.")
def init(force: bool) -> None:
    """Write a cloche.toml with every setting, its meaning and its default.

    Exit codes: 0 written, 2 it is there already or cannot be written.

    \b
    Examples:
      $ cloche config init
      $ cloche config init --force
    """
    try:
        with Path(_FILE).open("w" if force else "x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise SettingsError(
            f"{_FILE} exists already", fix="cloche config init --force overwrites it"
        ) from None
    except OSError as error:
        raise SettingsError(f"{_FILE} cannot be written", why=str(error)) from error
    click.echo(f"wrote {_FILE}")


@config.command()
@click.option("--celery", is_flag=True, help="Instead, what they become in Celery.")
def reference(celery: bool) -> None:
    """Print the reference of all settings as Markdown.

    Exit codes: 0.

    \b
    Examples:
      $ cloche config reference
      $ cloche config reference --celery
    """
    click.echo(defaults_markdown() if celery else markdown(), nl=False)


def _with_application(resolved: Resolved) -> Resolved:
    """With what the application sets itself; one that cannot be imported is told of on stderr."""
    try:
        return of_application(resolved)
    except AppError as error:
        click.echo(f"without what the application itself sets: {error}", err=True)
        return resolved


def _with_origin(row: SettingRow) -> dict[str, object]:
    return {"value": row.value, "origin": {"kind": row.origin.kind, "where": row.origin.where}}


def _write_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _text(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_table(lines: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell; the last one is left ragged."""
    table = [tuple(map(printable, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False)]
        click.echo("  ".join([*cells, line[-1]]))


def _write_explanation(explanation: Explanation) -> None:
    click.echo(click.style(explanation.key, bold=True))
    click.echo(f"  {explanation.description}\n")
    _write_table(_facts(explanation))


def _facts(explanation: Explanation) -> Iterable[tuple[str, ...]]:
    yield "  value", _text(explanation.value)
    yield "  from", str(explanation.origin)
    for loser in explanation.losers:
        yield "  instead of", f"{_text(loser.value)}  ({loser.origin})"
    yield "  default", _text(explanation.default)
    yield "  type", explanation.type
    yield "  variable", explanation.variable
    yield from (_celery_fact(key) for key in explanation.celery)
    yield "  restart", explanation.restart


def _celery_fact(key: CeleryKey) -> tuple[str, str]:
    return "  Celery", f"{key.key} = {_text(key.value)}" + (f"  ({key.why})" if key.why else "")
