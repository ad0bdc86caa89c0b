"""What the sources say: flat candidates per key, and everything that is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr

from cloche.settings.keys import Branch, Key, Path_, find, suggest, variable
from cloche.settings.origin import Origin, OriginCandidate

Where = Callable[[Path_], Origin]


@dataclass
class Reading:
    """Collects from all sources, the strongest first, so that every problem is told at once.

    ``places`` remembers where the inner parts of list values stand (``routes.0.pattern``).
    ``unread`` is what could not be read of files that belong to the project.
    """

    candidates: dict[Path_, list[OriginCandidate]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    places: dict[tuple[Path_, Origin], Where] = field(default_factory=dict)

    def take(self, path: Path_, value: object, where: Where) -> None:
        """A value as a file or a program gives it: typed, tables as mappings."""
        node = find(path)
        if node is None:
            self.unknown(path, where(path))
        elif isinstance(node, Key):
            self._leaf(node, path, value, where)
        elif isinstance(value, Mapping):
            self._table(path, value, where)
        else:
            self.problem(where(path), f"{_dotted(path)} is a table of settings, not a value")

    def offer(self, path: Path_, value: object, origin: Origin) -> None:
        """A value that is somebody else's: taken if it can be ours, no problem if not."""
        before = list(self.problems)
        self.take(path, value, fixed(origin))
        self.problems = before

    def take_text(self, path: Path_, text: str, origin: Origin) -> None:
        """A value as a variable or a command line gives it: text."""
        node = find(path)
        try:
            value = _decode(node, text)
        except ValueError as error:
            wanted = "a JSON object" if isinstance(node, Branch) else "a JSON list"
            self.problem(origin, f"{_dotted(path)} must be {wanted} ({error})")
        else:
            self.take(path, value, fixed(origin))

    def unknown(self, path: Path_, origin: Origin) -> None:
        near = suggest(path)
        hint = f" - did you mean '{_dotted(near)}'?" if near else ""
        if near and _dotted(near) == _dotted(path):  # "broker.url" = … in TOML is one odd name
            hint = " - write the key without quotes"
        elif near and origin.kind in ("env", "dotenv"):
            hint = f"{hint[:-1]} ({variable(near)})?"
        self.problem(origin, f"unknown setting '{_dotted(path)}'{hint}")

    def problem(self, origin: Origin, words: str) -> None:
        self.problems.append(f"{origin}: {words}")

    def _table(self, path: Path_, table: Mapping[object, object], where: Where) -> None:
        for name, value in table.items():
            self.take((*path, str(name)), value, where)
        if not table and _is_named(path):  # a worker with nothing but defaults is a worker
            self._add(path, OriginCandidate({}, where(path)))

    def _leaf(self, key: Key, path: Path_, value: object, where: Where) -> None:
        if value == "null" and key.nullable:  # TOML has no null of its own
            value = None
        if key.secret and value is not None:
            if not isinstance(value, str | SecretStr):  # not quoted: it is a secret all the same
                self.problem(where(path), f"{_dotted(path)} must be text: put it in quotes")
                return
            value = SecretStr(value) if isinstance(value, str) else value
        candidate = OriginCandidate(value, where(path))
        if key.sequence:
            self.places[path, candidate.origin] = where
        self._add(path, candidate)

    def _add(self, path: Path_, candidate: OriginCandidate) -> None:
        self.candidates.setdefault(path, []).append(candidate)


def fixed(origin: Origin) -> Where:
    """The same origin for every part."""
    return lambda _: origin


def _is_named(path: Path_) -> bool:
    table = find(path[:-1]) if path else None
    return isinstance(table, Branch) and table.named


def _decode(node: Key | Branch | None, text: str) -> object:
    """Text to value. Numbers and the like stay text: the model reads those itself."""
    if isinstance(node, Branch):
        table = json.loads(text)
        if not isinstance(table, dict):
            raise ValueError("it is something else")
        return table
    if isinstance(node, Key) and node.sequence:
        if node.listed and not text.lstrip().startswith("["):
            return [item.strip() for item in text.split(",") if item.strip()]
        return json.loads(text)
    return text


def _dotted(path: Path_) -> str:
    return ".".join(path)
