"""Every setting as a document: ``docs/settings.md`` and a commented ``cloche.toml``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta

from cloche.settings.celery_keys import CeleryDefault, celery_defaults
from cloche.settings.environment import PLUMBING, WELL_KNOWN
from cloche.settings.keys import Branch, Key, Path_, catalogue, children, find
from cloche.settings.model import Settings
from cloche.settings.views import shown

_INTRODUCTION = """\
# Settings

<!-- Written by `cloche config reference > docs/settings.md`; a test keeps it up to date. -->

Every value has an origin. The strongest source wins, key by key:

1. the command line: `--set broker.url=…` and options such as `--app`
2. `CLOCHE_*` variables: `__` for each dot, `CLOCHE_BROKER__URL` for `broker.url`
3. the same variables in `.env`
4. `cloche.toml`
5. `[tool.cloche]` in `pyproject.toml`
6. what the Celery application itself set
7. well-known variables: {well_known}; in the environment, then in `.env`
8. the default

Well-known variables belong to your project: they speak to Cloche only where the application says
nothing. Where Celery reads one itself before the application's own configuration
(`CELERY_BROKER_URL`, `CELERY_RESULT_BACKEND`), an application that names an address has named that
one. `DATABASE_URL` counts for applications made with `create_app` only, and what the application or
such a variable says and no setting of Cloche's can be is left to them: nothing is refused for it.

In an application that was not made with `create_app` the service, the dashboard and Cloche's own
families are off until they are asked for (`service.enabled`, `dashboard.enabled`,
`[families.logs]`), and results are kept as by Celery: a day, without arguments
(`results.expires`, `results.extended`). See [Existing projects](existing-projects.md).

The files are those of the current directory. A line of `.env` that is not `NAME=value`, and a
`.env` or `pyproject.toml` that cannot be read, is refused in applications made with `create_app`;
in others, whose files these are, it is a warning. An empty variable counts as unset, and so that a
file can unset something too, `"null"` does. In variables a list is JSON, or separated by commas
where its items are plain text; a table is a JSON object. Unknown settings are refused wherever
they are written. Cloche's own variables {plumbing} are no settings.

`cloche config explain KEY` tells where a value came from and what else was offered for it,
`cloche config init` writes all of this as a `cloche.toml` to fill in. Every process reads its
settings once, at its start: a change needs a restart of what reads it.
"""

#: Rows of a table are as long as their description: no line break is possible in Markdown.
_TABLE = "| key | type | default | meaning |\n|---|---|---|---|"


def markdown() -> str:
    introduction = _INTRODUCTION.format(
        well_known=", ".join(f"`{name}` ({'.'.join(path)})" for name, path in WELL_KNOWN),
        plumbing=", ".join(f"`{name}`" for name in PLUMBING),
    )
    return "\n".join([introduction, *(_section(path) for path in _tables())])


_DEFAULTS = """\
# Production defaults

<!-- Written by `cloche config reference --celery > docs/defaults.md`; a test keeps it so. -->

What `create_app()` and `harden(app)` set in Celery 5.7 and kombu 5.7, on Redis. A key that the
application has set itself is left alone (tables are filled up key by key), and
`app.cloche.hardened.left_alone` lists those. Each one is proved on a live worker or connection in
`tests/integration/app`, because a dictionary that holds a value proves nothing:
`task_max_retries`, `task_default_retry_delay`, `broker_transport_options["connection_pool_kwargs"]`
and `broker_heartbeat` on Redis are copied everywhere and read by nobody.

Three keys are left to applications that `create_app()` did not make, unless a setting says
otherwise, because who reads the results sees them: `task_track_started` (a reader may take every
state but PENDING for the end), `result_expires` (it may come hours later, and Celery's default is a
day) and `result_extended` (arguments would be stored).

Retries, retry delay and time limits of a task family (`tasks.<family>.<name>`) are put on the
tasks themselves, unless their author or the application's `task_annotations` did. Routes lead
families to their queues, the specific pattern before the general; every queue is declared with an
exchange and key of its own.

| Celery key | value | from | why |
|---|---|---|---|
"""


_ON_RABBITMQ = """
## On RabbitMQ

With an `amqp://` broker these are set besides, or instead; proved in `tests/integration/rabbitmq`.
Those about queues are set with `broker.quorum_queues` only, which `create_app()` turns on; an
existing application keeps its queues as it declares them. With it, queues that the application
only names become quorum queues with a delivery limit
(`broker.max_deliveries`) and a queue for dead letters: [RabbitMQ](rabbitmq.md).

| Celery key | value | from | why |
|---|---|---|---|
"""


def defaults_markdown() -> str:
    """What the settings become in Celery, as Markdown."""
    redis, rabbitmq = map(_defaults_on, ("redis://localhost:6379/0", "amqp://localhost//"))
    of_rabbitmq = [default for default in rabbitmq if default not in (*redis, *rabbitmq[:1])]
    return _DEFAULTS + _rows(redis) + _ON_RABBITMQ + _rows(of_rabbitmq)


def _defaults_on(url: str) -> tuple[CeleryDefault, ...]:
    return celery_defaults(Settings.model_validate({"broker": {"url": url}}))


def _rows(defaults: Iterable[CeleryDefault]) -> str:
    return "".join(
        f"| `{default.key}` | `{_plain(default.value)}` "
        f"| {f'`{default.setting}`' if default.setting else 'fixed'} | {default.why} |\n"
        for default in defaults
    )


def _plain(value: object) -> str:
    return str(value) if isinstance(value, timedelta) else json.dumps(value)


def _tables() -> list[Path_]:
    """The paths of all tables that hold settings; () is the top level."""
    return list(dict.fromkeys(key.path[:-1] for key in sorted(catalogue(), key=_top_level_first)))


def _top_level_first(key: Key) -> bool:
    return len(key.path) > 1


def _section(path: Path_) -> str:
    keys = list(children(path))
    title = f"[{'.'.join(path)}]".replace("*", "NAME") if path else "Top level"
    lines = [f"## {title}", "", f"{_about(path)}", "", _TABLE, *(_row(key) for key in keys)]
    if path == ("families", "*"):
        lines += ["", f"Set already: {_default_families()}"]
    return (
        "\n".join([*lines, "", f"Read by: {keys[0].readers}.", ""])
        if path
        else "\n".join([*lines, ""])
    )


def _about(path: Path_) -> str:
    node = find(path)
    return " ".join((node.section.__doc__ or "").split()) if isinstance(node, Branch) else ""


def _row(key: Key) -> str:
    cells = (
        f"`{key.dotted.replace('*', 'NAME')}`",
        key.wanted,
        _default(key),
        key.field.description or "",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(key: Key) -> str:
    return "unset" if key.default is None else f"`{toml(key)}`"


def _default_families() -> str:
    return "; ".join(
        f"`{name}`: "
        + ", ".join(
            f"{field} = {json.dumps(shown(value))}" for field, value in family if value is not None
        )
        for name, family in Settings().families.items()
    )


def toml(key: Key) -> str:
    """The default as TOML writes it. JSON's strings, numbers and lists are TOML's as well."""
    return '"null"' if key.default is None else json.dumps(shown(key.default), ensure_ascii=False)


def _example(key: Key) -> str:
    """What the template says: the default, but of what must be said an example."""
    examples = key.field.examples
    return json.dumps(examples[0], ensure_ascii=False) if examples else toml(key)


def template() -> str:
    """A ``cloche.toml`` with every setting commented out at its default."""
    head = (
        "# Settings of Cloche. Take the # from a line to change it; docs: cloche config reference"
    )
    return "\n".join([head, "", *(line for path in _tables() for line in _toml_table(path))])


def _toml_table(path: Path_) -> Iterator[str]:
    named = "*" in path
    yield from ([f"# {_about(path)}"] if path else [])
    if path:
        # A named table would bring that family or worker into being, so it is commented out.
        yield f"{'# ' if named else ''}[{'.'.join(path)}]".replace("*", "main")
    for key in children(path):
        yield f"## {key.field.description} ({key.wanted})"
        yield f"# {key.path[-1]} = {_example(key)}"
    yield ""
