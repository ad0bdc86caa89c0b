"""The line of every key, in every form TOML has."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloche.settings.toml_lines import key_lines

DOCUMENT = '''\
# a comment with [brackets] = and "quotes"
a = 1
b.c = "x # no comment"   # a comment
"quoted key" = 'literal \\'
'single'.d = 2

text = """
[not.a.table]
e = 1 \\"""
"""
raw = \'\'\'
f = 2
\'\'\'
list = [ 1, # one ]
  "two, ]", [3,
  4],
  { g = 5 },
]
inline = { h = 1, i.j = { k = "}" } }

[table] # a comment
l = 2026-01-01 00:00:00
[table.sub."deep er"]
m = 1
[[many]]
n = 1
[[many]]
o = 2
[many.inner]
p = 3
[[many.nested]]
q = 4
'''

LINES = {
    "a": 2, "b": 3, "b.c": 3, "quoted key": 4, "single.d": 5, "text": 7, "raw": 11,
    "list": 14, "list.0": 14, "list.1": 15, "list.2": 15, "list.2.1": 16, "list.3": 17,
    "list.3.g": 17, "inline": 19, "inline.h": 19, "inline.i.j.k": 19, "table": 21, "table.l": 22,
    "table.sub": 23, "table.sub.deep er": 23, "table.sub.deep er.m": 24, "many": 25,
    "many.0.n": 26, "many.1": 27, "many.1.o": 28, "many.1.inner": 29, "many.1.inner.p": 30,
    "many.1.nested.0": 31, "many.1.nested.0.q": 32,
}  # fmt: skip


def _spots(value: Any, spot: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every place in a parsed document."""
    if spot:
        yield spot
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in pairs:
            yield from _spots(item, (*spot, str(name)))


def test_every_form_of_key_is_found_on_its_line() -> None:
    found = {".".join(spot): line for spot, line in key_lines(DOCUMENT).items()}
    assert {key: found.get(key) for key in LINES} == LINES


def test_exactly_the_keys_that_tomllib_reads_are_found() -> None:
    assert set(key_lines(DOCUMENT)) == set(_spots(tomllib.loads(DOCUMENT)))


_keys = st.text("ab_-1", min_size=1, max_size=3)
_values = st.recursive(
    st.booleans() | st.integers() | st.text(st.characters(codec="ascii"), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=6,
)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(_toml, value)) + "]"
    return json.dumps(value).replace("\x7f", "\\u007f")


@given(st.dictionaries(_keys, st.dictionaries(_keys, _values, max_size=3), max_size=3))
def test_any_document_that_tomllib_reads_is_understood(tables: dict[str, dict[str, Any]]) -> None:
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {_toml(value)} # {{[\n" for key, value in table.items())
        for name, table in tables.items()
    )
    assert tomllib.loads(text) == tables
    lines = key_lines(text)
    assert set(lines) == set(_spots(tables))
    for (name, *rest), line in lines.items():
        if not rest:
            assert text.splitlines()[line - 1] == f"[{name}]"
