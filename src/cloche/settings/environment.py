"""Settings from variables: ``CLOCHE_*``, the well-known ones, and both again in ``.env``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import cast

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables
from pydantic import BaseModel, SecretStr

from cloche.errors import SettingsError
from cloche.settings.keys import Key, Path_, find, variable
from cloche.settings.origin import Kind, Origin, OriginCandidate
from cloche.settings.reading import Reading

PREFIX = "CLOCHE_"
#: Variables the package itself hands to its processes, and no settings: the instance a process
#: belongs to, its name in it, whether errors are shown with their traceback, and where the
#: values came from that are handed over in ``CLOCHE_*`` variables (JSON: variable -> place).
PLUMBING = ("CLOCHE_INSTANCE", "CLOCHE_PROCESS", "CLOCHE_DEBUG", "CLOCHE_ORIGINS")
#: What other programs call it, the more specific first: of two that are set, the first wins.
WELL_KNOWN: tuple[tuple[str, Path_], ...] = (
    ("CELERY_BROKER_URL", ("broker", "url")),
    ("REDIS_URL", ("broker", "url")),
    ("CELERY_RESULT_BACKEND", ("results", "url")),
    ("CELERY_BACKEND", ("results", "url")),
    ("DATABASE_URL", ("database", "url")),
)


@dataclass(frozen=True)
class Variables:
    """Variables by name, and where each stands. Empty ones count as unset."""

    values: Mapping[str, str]
    origin: Callable[[str, Kind], Origin]


def environment(environ: Mapping[str, str]) -> Variables:
    told = _handed_over(environ)

    def origin(name: str, kind: Kind) -> Origin:
        return Origin("cli", told[name]) if name in told else Origin(kind, name)

    return Variables(environ, origin)


def dotenv(reading: Reading, file: Path, environ: Mapping[str, str]) -> Variables:
    """Those of a ``.env`` file; ``${NAME}`` in it is filled in from ``environ``."""
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        pass  # a directory of that name holds the project's files, or a virtual environment
    except (OSError, UnicodeDecodeError) as error:
        reading.unread.append(f"{file.name}: the file cannot be read: {error}")
    else:
        values, lines = _parse_dotenv(reading, file.name, text, environ)

    def origin(name: str, kind: Kind) -> Origin:
        where = f"{file.name}:{lines[name]} ({name})"
        return Origin("dotenv" if kind == "env" else kind, where)

    return Variables(values, origin)


def _handed_over(environ: Mapping[str, str]) -> dict[str, str]:
    """Variable -> where its value came from, of those a process of ours was started with."""
    try:
        told = json.loads(environ.get("CLOCHE_ORIGINS", "{}"))
    except ValueError:
        return {}
    return {str(name): str(place) for name, place in told.items()} if isinstance(told, dict) else {}


def _parse_dotenv(
    reading: Reading, name: str, text: str, environ: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, int]]:
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    for binding in parse_stream(StringIO(text)):
        source = binding.original.string
        # The statement's text begins with the blank lines before it.
        line = binding.original.line + source[: len(source) - len(source.lstrip())].count("\n")
        if binding.error:
            reading.unread.append(f"{name}:{line}: not NAME=value")
        elif binding.key and binding.value is not None:
            known = {**values, **environ}
            values[binding.key] = "".join(
                atom.resolve(known) for atom in parse_variables(binding.value)
            )
            lines[binding.key] = line
    return values, lines


def read_cloche(reading: Reading, variables: Variables) -> None:
    """``CLOCHE_*``."""
    environ = variables.values
    for name in sorted(environ, key=lambda name: (-name.count("__"), name)):
        # The deeper name is the more specific: CLOCHE_WORKERS__A__PREFETCH over CLOCHE_WORKERS.
        if name.startswith(PREFIX) and name not in PLUMBING and environ[name].strip():
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            reading.take_text(path, environ[name], variables.origin(name, "env"))


def read_well_known(reading: Reading, variables: Variables, *, guest: bool) -> None:
    """What other programs call it. ``guest``: the application is a project's own, whose
    database is none of our business."""
    for name, path in WELL_KNOWN:
        if guest and path == ("database", "url"):
            continue
        if variables.values.get(name, "").strip():
            reading.offer(path, variables.values[name], variables.origin(name, "well-known"))


def to_environ(overrides: Mapping[str, object]) -> dict[str, str]:
    """The ``CLOCHE_*`` variables that hand dotted-key ``overrides`` to a child process.

    ``load(environ=to_environ(overrides))`` gives the settings ``load(overrides)`` gives; of a
    OriginCandidate the child tells the same origin.
    Raises SettingsError for an unknown key, or a value no variable can carry.
    """
    environ: dict[str, str] = {}
    named: dict[str, dict[str, object]] = {}
    origins: dict[str, str] = {}
    for dotted, given in overrides.items():
        value = given.value if isinstance(given, OriginCandidate) else given
        path = tuple(dotted.split("."))
        node = find(path)
        if node is None:
            raise SettingsError(f"unknown setting '{dotted}'")
        if all(_survives(part) for part in path):
            environ[variable(path)] = _text(dotted, value, node)
            if isinstance(given, OriginCandidate):
                origins[variable(path)] = given.origin.where
        else:  # a name that upper and lower case would change goes as JSON, which keeps it
            _put(named.setdefault(path[0], {}), path[1:], _plain(value))
    for table, content in named.items():
        environ[variable((table,))] = json.dumps(content)
    if origins:
        environ["CLOCHE_ORIGINS"] = json.dumps(origins)
    return environ


def _survives(part: str) -> bool:
    return part == part.lower() and "__" not in part and part.strip("_") == part


def _put(table: dict[str, object], path: Iterable[str], value: object) -> None:
    *tables, last = path
    for name in tables:
        table = cast(dict[str, object], table.setdefault(name, {}))
    table[last] = value


def _text(dotted: str, value: object, node: object) -> str:
    plain = _plain(value)
    if plain is None:
        return "null"
    if not isinstance(plain, str):
        return json.dumps(plain)
    if not plain.strip() or (plain == "null" and isinstance(node, Key) and node.nullable):
        raise SettingsError(f"{dotted} = {plain!r} cannot be handed over in a variable")
    return plain


def _plain(value: object) -> object:
    """``value`` as JSON knows it, secrets in clear: for a child's environment, not for eyes."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case timedelta():
            return value.total_seconds()
        case Path():
            return str(value)
        case BaseModel():
            return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
