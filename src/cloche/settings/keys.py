"""The catalogue of keys, read off the model: what there is, what a key wants, what was meant."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from cloche.settings.model import Settings
from cloche.settings.quantities import Expectation
from cloche.settings.section import Section

#: A dotted key split at its dots; ``*`` stands for the name of a family or a worker.
Path_ = tuple[str, ...]

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    timedelta: "duration",
    SecretStr: "secret",
    Any: "value",
}
_READERS = {
    "app": "every process",
    "run_dir": "every process",
    "timezone": "workers and the scheduler",
    "broker": "every process, the embedded broker too",
    "results": "workers and whoever sends tasks",
    "database": "workers, the service and the dashboard",
    "tasks": "workers and whoever sends tasks",
    "families": "workers and whoever sends tasks",
    "routes": "workers and whoever sends tasks",
    "expect_tasks": "workers",
    "worker": "workers",
    "workers": "that worker",
    "beat": "the scheduler",
    "watchdog": "cloche up",
    "reload": "cloche up",
    "service": "the service",
    "dashboard": "the dashboard",
    "download": "workers and the service",
    "logs": "every process that logs, and workers",
    "stop": "cloche up and the workers",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting. ``path`` has ``*`` where a family's or worker's name stands."""

    path: Path_
    field: FieldInfo

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        return variable(self.path)

    @property
    def nullable(self) -> bool:
        return type(None) in get_args(self.field.annotation)

    @property
    def secret(self) -> bool:
        return SecretStr in _flat(self.field.annotation)

    @property
    def listed(self) -> bool:
        """Whether it is a list whose items are plain text, so that commas may separate them."""
        args = get_args(self.field.annotation)
        return self.sequence and str in _flat(args[0])

    @property
    def sequence(self) -> bool:
        return get_origin(self.field.annotation) is tuple

    @property
    def wanted(self) -> str:
        """The type in words: ``whole number, at least 1, or null``."""
        words = _wanted(self.field.annotation, self.field.metadata)
        return words + (", or null" if self.nullable else "")

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True)

    @property
    def readers(self) -> str:
        """Which processes read it once at their start, and so must be restarted."""
        return _READERS[self.path[0]]


@dataclass(frozen=True, slots=True)
class Branch:
    """A table of settings; ``named`` if its keys are names the user chooses."""

    section: type[Section]
    named: bool = False


def variable(path: Path_) -> str:
    """``("broker", "url")`` -> ``CLOCHE_BROKER__URL``."""
    return "CLOCHE_" + "__".join(part.upper() for part in path)


@cache
def find(path: Path_) -> Key | Branch | None:
    """What ``path`` (with real names, or ``*``) means; None if there is no such setting."""
    node: Key | Branch | None = Branch(Settings)
    pattern: Path_ = ()
    for part in path:
        if not isinstance(node, Branch):
            return None
        pattern += ("*",) if node.named else (part,)
        node = Branch(node.section) if node.named else _field(node.section, part, pattern)
    return node


def _field(section: type[Section], name: str, pattern: Path_) -> Key | Branch | None:
    info = section.model_fields.get(name)
    if info is None:
        return None
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
        return Branch(info.annotation)
    if get_origin(info.annotation) is dict:
        return Branch(get_args(info.annotation)[1], named=True)
    return Key(pattern, info)


@cache
def catalogue() -> tuple[Key, ...]:
    """Every setting, in the model's order."""
    return tuple(_walk(()))


def _walk(path: Path_) -> Iterator[Key]:
    node = find(path)
    if isinstance(node, Key):
        yield node
    elif isinstance(node, Branch):
        for name in ["*"] if node.named else node.section.model_fields:
            yield from _walk((*path, name))


def children(path: Path_) -> Iterator[Key]:
    """The settings of one table, not of the tables in it."""
    return (key for key in catalogue() if key.path[:-1] == path)


def suggest(path: Path_) -> Path_ | None:
    """The known key nearest to the unknown ``path``, if any is near."""
    known = {".".join(near): near for near in _known(path)}
    found = get_close_matches(".".join(path), known, n=1, cutoff=0.7)
    return known[found[0]] if found else None


def _known(path: Path_) -> Iterator[Path_]:
    """Every table and setting, with the user's own names in place of ``*``."""
    for key in catalogue():
        names = (*path, *["NAME"] * len(key.path))
        real = tuple(names[at] if part == "*" else part for at, part in enumerate(key.path))
        yield from (real[:length] for length in range(1, len(real) + 1))


def _flat(annotation: object) -> set[object]:
    """All types an annotation is made of."""
    args = get_args(annotation)
    return {annotation}.union(*(_flat(arg) for arg in args)) if args else {annotation}


def _wanted(annotation: object, metadata: list[Any]) -> str:
    args = [arg for arg in get_args(annotation) if arg is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType):
        return _wanted(args[0], metadata)
    if hasattr(annotation, "__metadata__"):  # Annotated[type, …] inside a union or a list
        return _wanted(args[0], [*annotation.__metadata__, *metadata])
    if get_origin(annotation) is Literal:
        return " or ".join(repr(arg).replace("'", '"') for arg in args)
    if get_origin(annotation) is tuple:
        return f"list of {_wanted(args[0], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "{ " + ", ".join(annotation.model_fields) + " }"
    words = next(
        (item for item in metadata if isinstance(item, Expectation)), _WORDS.get(annotation)
    )
    return f"{words}{_bounds(metadata)}"


def _bounds(metadata: list[Any]) -> str:
    """``, at least 1, at most 65535``; that a number is not negative goes without saying."""
    words = []
    for item in _unpacked(metadata):
        if isinstance(item, Ge) and item.ge:
            words.append(f", at least {item.ge}")
        elif isinstance(item, Gt):
            words.append(f", more than {item.gt}")
        elif isinstance(item, Le):
            words.append(f", at most {item.le}")
    return "".join(words)


def _unpacked(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]
