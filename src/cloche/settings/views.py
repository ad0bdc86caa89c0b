"""The settings as people read them: every value with its origin, secrets hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cloche.errors import SettingsError
from cloche.settings.celery_app import TRANSPORT_OPTIONS, WORKER
from cloche.settings.celery_keys import celery_defaults
from cloche.settings.keys import Branch, Key, Path_, children, find, suggest, variable
from cloche.settings.model import Settings
from cloche.settings.origin import Origin, Resolved
from cloche.settings.quantities import duration
from cloche.settings.secrets import mask, mask_url


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting now. ``value`` is fit for JSON and for eyes."""

    key: str
    value: object
    origin: Origin


@dataclass(frozen=True, slots=True)
class CeleryKey:
    """A Celery key a setting becomes, with the value it gets. ``why`` may be empty."""

    key: str
    value: object
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to know of one setting. ``losers`` are the weaker candidates, in order."""

    key: str
    description: str
    type: str
    variable: str
    default: object
    value: object
    origin: Origin
    losers: tuple[SettingRow, ...]
    celery: tuple[CeleryKey, ...]
    restart: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shown(value: object) -> object:
    """``value`` as plain JSON types, secrets hidden, durations as ``1h``."""
    match value:
        case timedelta():
            return duration(value.total_seconds())
        case Path():
            return str(value)
        case BaseModel():
            return {name: shown(getattr(value, name)) for name in type(value).model_fields}
        case list() | tuple():
            return [shown(item) for item in value]
    return mask(value)


def rows(resolved: Resolved) -> Iterator[SettingRow]:
    """Every setting, those of each family and worker too, in the model's order."""
    for path, value in _leaves(resolved.settings, ()):
        key = ".".join(path)
        yield SettingRow(key, shown(value), resolved.origin(key))


def _leaves(value: object, path: Path_) -> Iterator[tuple[Path_, object]]:
    if isinstance(find(path), Key):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*path, name))


def explain(resolved: Resolved, dotted: str) -> Explanation:
    """What ``dotted`` is, where its value came from and what it becomes.

    Raises SettingsError if there is no such setting, or no family or worker of that name.
    """
    path = tuple(dotted.split("."))
    key = _key(path)
    values = dict(_leaves(resolved.settings, ()))
    if path not in values:
        at = key.path.index("*")
        table = ".".join(path[:at])
        named = attrgetter(table)(resolved.settings)
        raise SettingsError(
            f"nothing named '{path[at]}' is set in {table}",
            fix=f"there are: {', '.join(named) or 'none'}",
        )
    losers = resolved.candidates.get(dotted, ())[1:]
    return Explanation(
        key=dotted,
        description=key.field.description or "",
        type=key.wanted,
        variable=variable(path),
        default=shown(dict(_leaves(Settings(), ())).get(path, key.default)),
        value=shown(values[path]),
        origin=resolved.origin(dotted),
        losers=tuple(SettingRow(dotted, shown(loser.value), loser.origin) for loser in losers),
        celery=tuple(_celery_keys(resolved.settings, path, values[path])),
        restart=key.readers,
    )


def _key(path: Path_) -> Key:
    node = find(path)
    if isinstance(node, Key):
        return node
    dotted = ".".join(path)
    if isinstance(node, Branch):
        inside = ", ".join(key.dotted for key in children(_pattern(path, node)))
        raise SettingsError(f"'{dotted}' is a table", fix=f"ask for one of: {inside}")
    near = suggest(path)
    hint = f" - did you mean '{'.'.join(near)}'?" if near else ""
    raise SettingsError(
        f"unknown setting '{dotted}'{hint}", fix="every setting: cloche config reference"
    )


def _pattern(path: Path_, node: Branch) -> Path_:
    """The table's path as the catalogue has it."""
    if node.named:
        return (*path, "*")
    table = find(path[:-1])
    return (*path[:-1], "*") if isinstance(table, Branch) and table.named else path


def _celery_keys(settings: Settings, path: Path_, value: object) -> Iterator[CeleryKey]:
    dotted = ".".join(path)
    options = {mapped.path: mapped.celery for mapped in TRANSPORT_OPTIONS}
    for default in celery_defaults(settings):
        if default.key == "broker_transport_options":  # one entry for many settings of ours
            if path in options and options[path] in default.value:
                key = f"{default.key}[{options[path]!r}]"
                yield CeleryKey(key, shown(default.value[options[path]]), default.why)
        elif default.setting == dotted:
            yield CeleryKey(default.key, _as_shown(path, default.value), default.why)
    for mapped in WORKER:
        if path == mapped.path:
            yield CeleryKey(mapped.celery, shown(value), "of every worker")
        elif path[0] == "workers" and path[2:] == mapped.path[1:]:
            yield CeleryKey(mapped.celery, shown(value), f"of the worker {path[1]} only")


def _as_shown(path: Path_, value: object) -> object:
    """Celery's keys hold secrets in clear: what is secret with us is hidden there too."""
    secret = isinstance(key := find(path), Key) and key.secret
    return mask_url(value) if secret and isinstance(value, str) else shown(value)
