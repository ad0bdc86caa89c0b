"""Values from elsewhere, made fit for JSON, UTF-8 and terminals: nothing here ever fails."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import orjson

#: Levels of nesting kept of what is not JSON as it is.
DEPTH = 20
#: The last second of year 9999, and so of `datetime`.
_END_OF_TIME = 253_402_300_799.0
#: Besides control characters (Cc), what turns the direction of the line (Unicode bidi controls).
_INVISIBLE = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def said(value: object) -> str:
    """``str(value)``; what cannot say anything of itself is named by its type."""
    if type(value) is str:
        return value
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (any code of theirs)
        return f"<{type(value).__name__} without text>"


def utf8(value: object) -> str:
    """Its text, lone surrogates written as ``\\udce9``."""
    return said(value).encode(errors="backslashreplace").decode()


def storable(value: object) -> str:
    """Its text as UTF-8 and PostgreSQL can hold it: no lone surrogates, no NUL."""
    return utf8(value).replace("\0", "␀")


def json_value(value: Any, depth: int = 0) -> Any:
    """What JSON can hold of it; else its text."""
    try:
        return _json_value(value, depth)
    except Exception:  # noqa: BLE001 (a mapping of theirs that raises, a repr that does)
        return storable(value)


def _json_value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _digits(value)
    if isinstance(value, Mapping) and depth < DEPTH:
        return {storable(key): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH:
        return [json_value(item, depth + 1) for item in value]
    if isinstance(value, str):
        return storable(value)
    try:
        return json_value(orjson.loads(orjson.dumps(value)), DEPTH)  # dates, UUIDs, enums
    except (TypeError, ValueError):
        return storable(value)


def _digits(number: int) -> str:
    try:
        return str(int(number))
    except ValueError:  # more digits than Python writes (sys.set_int_max_str_digits)
        return f"{number:#x}"


def moment(value: object) -> float | None:
    """Unix seconds that a calendar has, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _END_OF_TIME else None


#: Accents, and the vowel and tone signs of Thai and Lao: tokenisers drop or keep them as they like.
_MARKS = re.compile(
    "[\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece]"
)
#: Letters of languages that write no spaces between words (Han, Kana, Thai, Lao, Khmer, Burmese),
#: and Hangul, whose particles follow a word without one.
_ALONE = re.compile(
    "([\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])"
)


def search_words(text: str) -> str:
    """What is indexed of a text and what is sought of a question: without accents, each letter of
    a language without spaces a word of its own, so that its words are phrases.

    PostgreSQL has the same as ``cloche_words`` (migration 0003).
    """
    if text.isascii():
        return text
    plain = _MARKS.sub("", unicodedata.normalize("NFD", text))
    return _ALONE.sub(r" \1 ", unicodedata.normalize("NFC", plain))


def printable(value: object) -> str:
    """One line for a terminal: control characters written out (``\\x1b``, ``\\n``), so that data
    can neither command it nor begin a line of its own."""
    text = utf8(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) == "Cc" or character in _INVISIBLE:
        return character.encode("unicode_escape").decode()
    return "\\u2028" if character == "\u2028" else "\\u2029" if character == "\u2029" else character
