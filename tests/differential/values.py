"""Arguments and results that JSON cannot carry, written as JSON: programs are kept as files."""

from __future__ import annotations

import datetime as dt
import decimal
import types
import uuid
from collections.abc import Callable, Mapping
from typing import Any

TAG = "$"


class Opaque:
    """What no serializer but pickle takes."""

    def __repr__(self) -> str:
        return "<Opaque>"


_BUILD: Mapping[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "seconds": lambda seconds: dt.timedelta(seconds=seconds),
    "decimal": decimal.Decimal,
    "uuid": uuid.UUID,
    "set": lambda items: {build(item) for item in items},
    "tuple": lambda items: tuple(build(item) for item in items),
    "dict": lambda pairs: {build(key): build(value) for key, value in pairs},
    "deep": lambda levels: _deep(levels),
    "text": lambda size: "x" * size,
    "opaque": lambda _: Opaque(),
    "lambda": lambda _: lambda: None,
}


def build(value: Any) -> Any:
    """The Python value that ``{"$": kind, "v": …}`` and plain JSON stand for."""
    if isinstance(value, dict):
        if TAG in value:
            return _BUILD[value[TAG]](value["v"])
        return {key: build(item) for key, item in value.items()}
    if isinstance(value, list):
        return [build(item) for item in value]
    return value


def _deep(levels: int) -> Any:
    found: Any = "bottom"
    for _ in range(levels):
        found = [found]
    return found


def plain(value: Any, depth: int = 0) -> Any:
    """Anything as JSON, for the ledger: what JSON lacks becomes its type and repr."""
    depth += 1
    if depth > 80:
        return "…"
    if value is None or isinstance(value, bool | int | float | str):
        return value if type(value) in (type(None), bool, int, float, str) else _named(value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {
            key if isinstance(key, str) else _named(key): plain(v, depth)
            for key, v in value.items()
        }
    if type(value) is list:
        return [plain(item, depth) for item in value]
    if type(value) is tuple:
        return {"tuple": [plain(item, depth) for item in value]}
    if isinstance(value, BaseException):
        return {
            "exception": type(value).__name__,
            "args": [plain(item, depth) for item in value.args],
        }
    if isinstance(value, types.TracebackType):
        return "<traceback>"
    return _named(value)


def _named(value: Any) -> str:
    return f"<{type(value).__name__}> {value!r}"
