"""Read every source, let the strongest win per key, validate once, keep the losers.

Command line > ``CLOCHE_*`` > well-known variables > ``.env`` > ``cloche.toml`` >
``[tool.cloche]`` > what the Celery application set > default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cloche.errors import SettingsError
from cloche.settings.celery_app import read_app
from cloche.settings.environment import read_dotenv, read_environ
from cloche.settings.files import read_cloche_toml, read_pyproject
from cloche.settings.keys import Branch, Key, Path_, find
from cloche.settings.model import Route, Settings
from cloche.settings.origin import DEFAULT, Candidate, Origin, Resolved
from cloche.settings.reading import Reading, fixed
from cloche.settings.secrets import mask


def load(
    cli: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    app_conf: Mapping[str, object] | None = None,
) -> Resolved:
    """The settings of ``directory`` (default: the current one), with all their origins.

    ``cli`` maps dotted keys to text, typed values, or a Candidate that brings its own origin
    (``--broker-url``). ``app_conf`` holds the Celery keys an application changed.
    Raises SettingsError that lists every problem of every source at once.
    """
    environ = os.environ if environ is None else environ
    directory = directory or Path.cwd()
    reading = Reading()
    _read_cli(reading, cli or {})
    read_environ(reading, environ)
    read_dotenv(reading, directory / ".env", environ)
    read_cloche_toml(reading, directory)
    read_pyproject(reading, directory)
    read_app(reading, app_conf or {})
    settings = _validate(reading)
    if settings is None or reading.problems:
        raise _refusal(reading.problems)
    return Resolved(settings, {".".join(p): tuple(c) for p, c in reading.candidates.items()})


def reload(
    resolved: Resolved,
    *,
    cli: Mapping[str, object] | None = None,
    app_conf: Mapping[str, object] | None = None,
) -> Resolved:
    """Read every source again, with the command line of ``resolved`` and ``cli`` on top of it.

    Raises SettingsError as :func:`load` does.
    """
    given = {
        key: offered[0]
        for key, offered in resolved.candidates.items()
        if offered[0].origin.kind == "cli"
    }
    return load({**given, **(cli or {})}, app_conf=app_conf)


def _read_cli(reading: Reading, cli: Mapping[str, object]) -> None:
    for dotted, given in cli.items():
        candidate = _with_origin(dotted, given)
        path = tuple(dotted.split("."))
        if isinstance(candidate.value, str):
            reading.take_text(path, candidate.value, candidate.origin)
        else:
            reading.take(path, candidate.value, fixed(candidate.origin))


def _with_origin(dotted: str, given: object) -> Candidate:
    return (
        given
        if isinstance(given, Candidate)
        else Candidate(given, Origin("cli", f"--set {dotted}"))
    )


def _validate(reading: Reading) -> Settings | None:
    """The settings, or None with the problems noted."""
    try:
        return Settings.model_validate(_tree(reading))
    except ValidationError as error:
        for details in error.errors(include_url=False, include_context=False):
            reading.problems.append(_explain(reading, details))
        return None


def _tree(reading: Reading) -> dict[str, Any]:
    """The winners, nested as the model wants them."""
    tree: dict[str, Any] = {}
    for path, offered in reading.candidates.items():
        table = tree
        for name in path[:-1]:
            table = table.setdefault(name, {})
        if isinstance(find(path), Branch):
            table.setdefault(path[-1], {})
        else:
            table[path[-1]] = offered[0].value
    return tree


def _explain(reading: Reading, details: ErrorDetails) -> str:
    """One line: where, which key, what is wrong, what was given, what is wanted."""
    spot = tuple(str(part) for part in details["loc"])
    leaf = next(
        (spot[:n] for n in range(len(spot), 0, -1) if isinstance(find(spot[:n]), Key)), None
    )
    words = _words(details)
    if spot[-1:] == ("[key]",):
        words = "a name is made of letters, digits, - and _"
        return f"{_below(reading, spot[:-1])}: {'.'.join(spot[:-1])}: {words}"
    if leaf is None or leaf not in reading.candidates:
        return f"{_below(reading, spot)}: {'.'.join(spot) or 'settings'}: {words}"
    winner = reading.candidates[leaf][0]
    place = reading.places.get((leaf, winner.origin), fixed(winner.origin))(spot)
    if details["type"] == "extra_forbidden":
        return f"{place}: {_unknown_part(spot)}"
    given = f"{'.'.join(spot)} = {mask(_given(winner.value, spot, leaf))!r}"
    return f"{place}: {given}: {words}{_wanted(leaf, details)}"


def _wanted(leaf: Path_, details: ErrorDetails) -> str:
    """What the key wants, unless the message is one of ours and says so already."""
    key = find(leaf)
    if not isinstance(key, Key) or details["type"] == "value_error":
        return ""
    return f"; wanted: {key.wanted}"


def _words(details: ErrorDetails) -> str:
    words = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return words.replace("Input should be", "it must be")


def _given(value: object, spot: Path_, leaf: Path_) -> object:
    """The part of a list value that the error is about."""
    for part in spot[len(leaf) :]:
        if isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
    return value


def _unknown_part(spot: Path_) -> str:
    near = get_close_matches(spot[-1], Route.model_fields, n=1)
    hint = f" - did you mean '{near[0]}'?" if near else ""
    return f"unknown setting '{'.'.join(spot)}'{hint}"


def _below(reading: Reading, spot: Path_) -> str:
    """Where the settings of a table came from that contradict each other."""
    origins = {
        str(offered[0].origin): None
        for path, offered in reading.candidates.items()
        if path[: len(spot)] == spot
    }
    return ", ".join(origins) or str(DEFAULT)


def _refusal(problems: list[str]) -> SettingsError:
    if len(problems) == 1:
        what = problems[0]
    else:
        what = "\n  - ".join([f"{len(problems)} settings are wrong:", *problems])
    return SettingsError(
        what, fix="every setting is listed by: cloche config reference", problems=tuple(problems)
    )
