"""The options by which every command of ``cloche logs`` chooses records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import click

from cloche.database import Database
from cloche.logs.filter import LogFilter
from cloche.logs.read import LogReader
from cloche.logs.record import LEVELS
from cloche.settings import Resolved

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
    database = Database(resolved.settings)
    try:
        yield LogReader(database)
    finally:
        database.close()
