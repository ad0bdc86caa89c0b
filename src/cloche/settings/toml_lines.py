"""On which line each key of a TOML document stands; ``tomllib`` does not tell.

Reads only documents that ``tomllib`` accepted, so it looks for structure, not for errors.
Grammar: TOML 1.0, https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re

_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}\n#]+")
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"\'\'\'.*?\'\'\'(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\])*"'),
    re.compile(r"'[^']*'"),
)

Spot = tuple[str, ...]


def key_lines(text: str) -> dict[Spot, int]:
    """Line (from 1) of every key, table and item; items of lists are named "0", "1", …"""
    return _Scanner(text).scan()


class _Scanner:
    """Walks the text statement by statement; ``at`` is the next character to look at."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Spot, int] = {}
        self.lengths: dict[Spot, int] = {}  # of arrays of tables, so far

    def scan(self) -> dict[Spot, int]:
        table: Spot = ()
        self.skip()
        while self.at < len(self.text):
            table = self.header() if self.peek("[") else self.pair(table)
            self.skip()
        return self.lines

    def peek(self, token: str) -> bool:
        return self.text.startswith(token, self.at)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match[0] if match else ""

    def skip(self) -> None:
        self.take(_SPACE)

    def note(self, spot: Spot, line: int) -> None:
        """The first mention of a key, and of every table it implies, is its line."""
        for length in range(1, len(spot) + 1):
            self.lines.setdefault(spot[:length], line)

    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def header(self) -> Spot:
        """``[a.b]`` or ``[[a.b]]``: the table that the following pairs belong to."""
        line, many = self.line(), self.peek("[[")
        self.at += 2 if many else 1
        spot = self.inside(self.key())
        self.at += 2 if many else 1
        if many:
            number = self.lengths.get(spot, 0)
            self.lengths[spot] = number + 1
            spot = (*spot, str(number))
        self.note(spot, line)
        return spot

    def inside(self, key: Spot) -> Spot:
        """``key`` with the number of the current item after each array of tables on its way."""
        spot: Spot = ()
        for part in key[:-1]:
            spot = (*spot, part)
            if spot in self.lengths:
                spot = (*spot, str(self.lengths[spot] - 1))
        return (*spot, key[-1])

    def key(self) -> Spot:
        """A dotted key, up to its ``=`` or ``]``."""
        parts = []
        while True:
            self.skip()
            parts.append(self.take(_BARE_KEY) or _unquote(self.string()))
            self.skip()
            if not self.peek("."):
                return tuple(parts)
            self.at += 1

    def pair(self, table: Spot) -> Spot:
        """``key = value``; returns ``table``, which goes on after it."""
        line = self.line()
        spot = (*table, *self.key())
        self.note(spot, line)
        self.at += 1  # the "="
        self.value(spot)
        return table

    def value(self, spot: Spot) -> None:
        self.skip()
        if self.peek("{"):
            self.inline_table(spot)
        elif self.peek("["):
            self.array(spot)
        elif not self.string():
            self.take(_BARE_VALUE)

    def inline_table(self, spot: Spot) -> None:
        self.at += 1
        self.skip()
        while not self.peek("}"):
            self.pair(spot)
            self.comma()
        self.at += 1

    def array(self, spot: Spot) -> None:
        self.at += 1
        self.skip()
        number = 0
        while not self.peek("]"):
            item = (*spot, str(number))
            self.note(item, self.line())
            self.value(item)
            self.comma()
            number += 1
        self.at += 1

    def comma(self) -> None:
        self.skip()
        self.at += self.peek(",")
        self.skip()

    def string(self) -> str:
        for pattern in _STRINGS:
            if found := self.take(pattern):
                return found
        return ""


def _unquote(quoted: str) -> str:
    """The key inside quotes. Escapes stay as they are: no setting's name needs one."""
    return quoted[1:-1]
