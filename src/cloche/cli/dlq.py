"""``cloche dlq``: the messages that will not be delivered again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

import click

from cloche.broker.channel import Channel
from cloche.broker.dead_letters import DeadLetter, DeadLetters
from cloche.broker.rabbitmq.dead_letters import AmqpDeadLetters
from cloche.cli.options import json_option, settings_options
from cloche.cli.table import columns, write_table
from cloche.errors import ClocheError, SettingsError
from cloche.launch.environment import join
from cloche.plain import printable
from cloche.settings import Resolved


@click.group()
def dlq() -> None:
    """List, show, retry and purge dead letters.

    A message becomes one when it killed its workers, names an unknown task, or cannot be read.

    \b
    Examples:
      $ cloche dlq list
      $ cloche dlq retry --all
    """


@dlq.command("list")
@click.option("-Q", "--queue", help="Only those from this queue.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most.")
@json_option
@settings_options
def list_letters(resolved: Resolved, as_json: bool, queue: str | None, limit: int) -> None:
    """List dead letters, newest first.

    Exit codes: 0 shown (also: there are none), 2 settings, 3 broker, 5 application.

    \b
    Examples:
      $ cloche dlq list
      $ cloche dlq list -Q mail --limit 5 --json
    """
    with _letters(resolved) as letters:
        found = letters.latest(queue=queue, limit=limit)
        total = len(letters)
    if as_json:
        click.echo(json.dumps([_fields(letter) for letter in found], indent=2))
        return
    rows = [
        {
            "id": letter.id,
            "when": _when(letter),
            "reason": letter.reason,
            "queue": letter.queue,
            "task": letter.task or "?",
            "detail": letter.detail,
        }
        for letter in found
    ]
    if rows:
        write_table(columns("id reason task queue when detail"), rows)
    click.echo(f"{total} dead letters" if total != 1 else "1 dead letter", err=True)


@dlq.command()
@click.argument("id")
@json_option
@settings_options
def show(resolved: Resolved, as_json: bool, id: str) -> None:
    """Show one dead letter: why, its history, the message itself.

    Exit codes: 0 shown, 1 there is none of that id, 2 settings, 3 broker, 5 application.

    \b
    Examples:
      $ cloche dlq show 0123456789ab
    """
    with _letters(resolved) as letters:
        letter = letters.get(id)
    if letter is None:
        raise ClocheError(f"there is no dead letter {id}", fix="see: cloche dlq list")
    fields = _fields(letter)
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    for name, value in fields.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:<8} {printable(shown)}")


def _of_some(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of a command on some dead letters or all."""
    for add in (
        settings_options,
        json_option,
        click.option("--all", "everything", is_flag=True, help="All of them."),
        click.argument("ids", nargs=-1),
    ):
        command = add(command)
    return command


@dlq.command()
@_of_some
def retry(resolved: Resolved, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Put dead letters back into their queues, their deaths forgiven.

    Exit codes: 0 done (also: there was none), 2 settings or command line, 3 broker,
    5 application.

    \b
    Examples:
      $ cloche dlq retry 0123456789ab
      $ cloche dlq retry --all
    """
    chosen = _chosen(ids, everything)
    with _letters(resolved) as letters:
        _write_count(letters.retry(chosen), "put back", as_json=as_json)


@dlq.command()
@_of_some
def purge(resolved: Resolved, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Delete dead letters for good.

    Exit codes: 0 done (also: there was none), 2 settings or command line, 3 broker,
    5 application.

    \b
    Examples:
      $ cloche dlq purge 0123456789ab
      $ cloche dlq purge --all
    """
    chosen = _chosen(ids, everything)
    with _letters(resolved) as letters:
        _write_count(letters.purge(chosen), "deleted", as_json=as_json)


def _write_count(count: int, done: str, *, as_json: bool) -> None:
    click.echo(json.dumps({done.replace(" ", "_"): count}) if as_json else f"{count} {done}")


@contextmanager
def _letters(resolved: Resolved) -> Iterator[DeadLetters | AmqpDeadLetters]:
    """Those of the broker the settings name. Raises SettingsError for another transport."""
    with join(resolved).app.connection_for_write() as connection:
        channel = connection.default_channel
        if isinstance(channel, Channel):
            yield DeadLetters(channel.own, channel.keys)
        elif connection.transport.driver_type == "amqp":
            yield AmqpDeadLetters(connection)
        else:
            raise SettingsError(
                "only Cloche's transport and RabbitMQ keep dead letters",
                why=f"this broker is used through {connection.transport.driver_name}",
                fix="set broker.transport to cloche, on Redis or Valkey",
            )


def _chosen(ids: tuple[str, ...], everything: bool) -> tuple[str, ...] | None:
    """The ids, or None for all. Neither or both is a usage error."""
    if everything == bool(ids):
        raise click.UsageError("name the ids, or say --all")
    return None if everything else ids


def _when(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _fields(letter: DeadLetter) -> dict[str, object]:
    fields = asdict(letter)
    return {**fields, "at": _when(letter), "raw": letter.raw.decode(errors="replace")}
