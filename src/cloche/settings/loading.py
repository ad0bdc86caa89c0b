"""Read every source, let the strongest win per key, validate once, keep the losers.

Command line > ``CLOCHE_*`` (environment, then ``.env``) > ``cloche.toml`` > ``[tool.cloche]`` >
what the Celery application set > well-known variables (environment, then ``.env``) > default.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cloche.errors import SettingsError
from cloche.settings.celery_app import read_app
from cloche.settings.environment import dotenv, environment, read_cloche, read_well_known
from cloche.settings.files import read_cloche_toml, read_pyproject
from cloche.settings.keys import Branch, Key, Path_, find
from cloche.settings.model import Route, Settings
from cloche.settings.origin import DEFAULT, GUEST, Kind, Origin, OriginCandidate, Resolved
from cloche.settings.reading import Reading, fixed
from cloche.settings.secrets import mask

#: How variables and the command line say yes, as pydantic reads them.
_TRUE = ("true", "t", "yes", "y", "on", "1")


def load(
    cli: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    app_conf: Mapping[str, object] | None = None,
    guest: bool | None = None,
) -> Resolved:
    """The settings of ``directory`` (default: the current one), with all their origins.

    ``cli`` maps dotted keys to text, typed values, or a OriginCandidate that brings its own origin
    (``--broker-url``). ``app_conf`` holds the Celery keys an application changed. ``guest``:
    whether the application is a project's own, not one of ``create_app``; None: unless it is
    the one that runs where none is named. What cannot be read of the project's own files
    (``.env``) is a problem where the application is known to be one of ``create_app`` (False),
    else a warning.
    Raises SettingsError that lists every problem of every source at once.
    """
    environ = os.environ if environ is None else environ
    directory = directory or Path.cwd()
    reading = Reading()
    _read_cli(reading, cli or {})
    variables, in_file = environment(environ), dotenv(reading, directory / ".env", environ)
    read_cloche(reading, variables)
    read_cloche(reading, in_file)
    read_cloche_toml(reading, directory)
    read_pyproject(reading, directory)
    if guest is False:
        reading.problems += reading.unread
    guest = _is_named(reading) if guest is None else guest
    read_app(reading, app_conf or {}, environ)
    read_well_known(reading, variables, guest=guest)
    read_well_known(reading, in_file, guest=guest)
    if guest:
        _read_guest(reading)
    settings = _validate(reading, guest=guest)
    if settings is None or reading.problems:
        raise _refusal(reading)
    found = {".".join(path): tuple(offered) for path, offered in reading.candidates.items()}
    return Resolved(settings, found, tuple(reading.unread))


def _is_named(reading: Reading) -> bool:
    """Whether somebody named an application that is not Cloche's own."""
    offered = reading.candidates.get(("app",))
    return offered is not None and offered[0].value != Settings.model_fields["app"].default


def _read_guest(reading: Reading) -> None:
    """In somebody's project nothing runs that nobody asked for, and who reads its results finds
    what Celery keeps."""
    reading.take(("results", "expires"), timedelta(days=1), fixed(GUEST))
    reading.take(("results", "extended"), False, fixed(GUEST))
    for page in ("service", "dashboard"):
        reading.take((page, "enabled"), False, fixed(GUEST))
    service = reading.candidates["service", "enabled"][0].value
    if str(service).lower() in _TRUE:  # it is of no use without those who download
        reading.take(("families", "download"), {}, fixed(GUEST))


def reload(
    resolved: Resolved,
    *,
    cli: Mapping[str, object] | None = None,
    app_conf: Mapping[str, object] | None = None,
    guest: bool | None = None,
) -> Resolved:
    """Read every source again, with the command line of ``resolved`` and ``cli`` on top of it.

    Raises SettingsError as :func:`load` does.
    """
    return load({**resolved.overrides(), **(cli or {})}, app_conf=app_conf, guest=guest)


def _read_cli(reading: Reading, cli: Mapping[str, object]) -> None:
    for dotted, given in cli.items():
        candidate = _with_origin(dotted, given)
        path = tuple(dotted.split("."))
        if isinstance(candidate.value, str):
            reading.take_text(path, candidate.value, candidate.origin)
        else:
            reading.take(path, candidate.value, fixed(candidate.origin))


def _with_origin(dotted: str, given: object) -> OriginCandidate:
    return (
        given
        if isinstance(given, OriginCandidate)
        else OriginCandidate(given, Origin("cli", f"--set {dotted}"))
    )


def _validate(reading: Reading, *, guest: bool) -> Settings | None:
    """The settings, or None with the problems noted.

    What a project's application or a variable of its says is not ours to refuse: a value that
    cannot be ours stays theirs, and the next source is asked.
    """
    while True:
        try:
            return Settings.model_validate(_tree(reading), context={"guest": guest})
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
        theirs: tuple[Kind, ...] = ("app", "well-known") if guest else ("app",)
        passed = [_passed_over(reading, details, theirs) for details in found]
        if not any(passed):
            reading.problems += [_explain(reading, details) for details in found]
            return None


def _passed_over(reading: Reading, details: ErrorDetails, theirs: Collection[Kind]) -> bool:
    """Take away the part of ``theirs`` in what does not fit; whether there was any."""
    spot = tuple(str(part) for part in details["loc"])
    parts = [path for path in reading.candidates if path == spot[: len(path)]]
    if not parts:  # settings of one table that contradict each other
        parts = [path for path in reading.candidates if path[: len(spot)] == spot]
    found = [path for path in parts if reading.candidates[path][0].origin.kind in theirs]
    for path in found:
        del reading.candidates[path][0]
        if not reading.candidates[path]:
            del reading.candidates[path]
    return bool(found)


def _tree(reading: Reading) -> dict[str, Any]:
    """The winners, nested as the model wants them."""
    tree: dict[str, Any] = {"families": {}}
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


def _refusal(reading: Reading) -> SettingsError:
    problems = reading.problems
    fix = "every setting is listed by: cloche config reference"
    if problems == reading.unread:
        fix = "correct it; if the application is not Cloche's own, name it with -A"
    if len(problems) == 1:
        what = problems[0]
    else:
        what = "\n  - ".join([f"{len(problems)} settings are wrong:", *problems])
    return SettingsError(what, fix=fix, problems=tuple(problems))
