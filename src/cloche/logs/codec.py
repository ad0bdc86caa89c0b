"""A record as it travels and waits on disk: one line of JSON.

::

    {"id": "019abbb4-…", "time": 1764085767123456, "level": "info", "category": "agent",
     "step": "plan", "message": "…", "run_id": "…", "details": {…}, "duration_ms": 1.5}

``time`` is in µs since 1970 and agrees with the id to the millisecond. Nulls may be
left out.
Programs in other languages may write such lines: the writer checks each.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from cloche.logs.record import END_OF_TIME, LEVELS, LogRecord
from cloche.plain import json_value, storable

#: Longest category, step, agent and foreign id, characters. (PostgreSQL cannot index more than
#: 2.7 kB.)
MAX_NAME = 255
#: The same with the mark of a cut.
_LONGEST = MAX_NAME + 40
#: Longest line the writer stores, bytes.
MAX_LINE = 512 * 1024
_NAMES = ("step", "task_id", "run_id", "concept_id", "agent")
_FIELDS = frozenset(
    {"id", "time", "level", "category", "message", *_NAMES, "details", "duration_ms"}
)
_NUL = b"\\u0000"
_NULL = b"null"
#: The same for certain: its backslash is not itself escaped.
_REAL_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes kept of a message and of details."""

    message: int
    details: int


def encode(record: LogRecord, limits: Limits) -> bytes:
    """Its line, the newline included. Whatever the record holds, this does not fail."""
    _, _, level, category, step, message, task, run, concept, agent, details, duration = record
    fields: dict[str, Any] = {
        "id": record.id_text,
        "time": record.micros,
        "level": level,
        "category": category,
        "step": step,
        "message": message,
        "task_id": task,
        "run_id": run,
        "concept_id": concept,
        "agent": agent,
        "details": details,
        "duration_ms": duration,
    }
    others = (category, step, message, task, run, concept, agent, duration)
    texts = {type(text) for text in others[:-1]}
    if not texts <= _TEXTS or type(details) not in _OBJECTS or type(duration) not in _NUMBERS:
        return _mended(fields, limits)
    try:
        line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return _mended(fields, limits)
    if details is not None and line.count(_NULL) > others.count(None):
        return _mended(fields, limits)  # there may be a NaN in it, which JSON has no number for
    if len(line) <= _SURELY_FITS and _NUL not in line:
        return line
    return line if _fits(fields, line, limits) else _mended(fields, limits)


#: Types that are stored as they are.
_TEXTS = frozenset({str, type(None)})
_OBJECTS = frozenset({dict, type(None)})
_NUMBERS = frozenset({float, int, type(None)})
#: Bytes of a line below which no name in it can be too long.
_SURELY_FITS = MAX_NAME + 250


def _fits(fields: Mapping[str, Any], line: bytes, limits: Limits) -> bool:
    """Whether a line is no longer than allowed, in whole and in parts."""
    names = (len(fields[name] or "") for name in ("category", *_NAMES))
    return len(line) <= limits.message and _NUL not in line and max(names) <= MAX_NAME


def _mended(given: Mapping[str, Any], limits: Limits) -> bytes:
    """The same, made fit: text that is text, details that are JSON, both no longer than allowed."""
    fields = {name: value for name, value in given.items() if value is not None}
    for name in ("category", *_NAMES):
        if name in fields:
            fields[name] = _cut(storable(fields[name]), MAX_NAME)
    fields["category"] = fields.get("category", "")
    fields["message"] = _cut(storable(given["message"]), limits.message)
    if "details" in fields:
        details = fields["details"]
        fields["details"] = _details(details, limits.details)
    if "duration_ms" in fields:
        fields["duration_ms"] = _number(fields["duration_ms"])
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
        return number if math.isfinite(number) else None
    except Exception:  # noqa: BLE001 (too large, or code of theirs)
        return None


def _cut(text: str, limit: int) -> str:
    """At most ``limit`` bytes of it and a mark that says what is missing."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    kept = encoded[:limit].decode(errors="ignore")
    return f"{kept}… [cut: {len(encoded)} bytes]"


def _details(value: Any, limit: int) -> dict[str, Any]:
    plain = json_value(value)
    plain = plain if isinstance(plain, dict) else {"value": plain}
    encoded = orjson.dumps(plain)
    if len(encoded) <= limit:
        return plain
    start = encoded[: limit // 2].decode(errors="ignore")
    return {"cut": True, "bytes": len(encoded), "start": start}


class RecordRow(NamedTuple):
    """The columns of ``cloche_log_records``; ``id`` is its 16 bytes, ``time`` in µs since 1970."""

    id: bytes
    time: int
    level: int
    category: str
    step: str | None
    message: str
    task_id: str | None
    run_id: str | None
    concept_id: str | None
    agent: str | None
    details: dict[str, Any] | None
    duration_ms: float | None


@dataclass(frozen=True, slots=True)
class Dead:
    """A line that cannot be stored as a record, and why."""

    id: UUID
    reason: str
    payload: bytes


def decode(line: bytes) -> RecordRow | Dead:
    """The row of a line, or why it is none."""
    try:
        return _row(line)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return dead(line, _reason(error))


def dead(line: bytes, reason: str) -> Dead:
    """``line`` as a dead letter, under its own id if it has one."""
    try:
        id = UUID(orjson.loads(line)["id"])
    except (ValueError, TypeError, KeyError, AttributeError):
        id = UUID(bytes=hashlib.sha256(line).digest()[:16])
    return Dead(id, reason, line)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error)


def _row(line: bytes) -> RecordRow:
    if len(line) > MAX_LINE:
        raise ValueError(f"oversized: {len(line)} bytes, at most {MAX_LINE} are stored")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if type(fields) is not dict:
        raise TypeError("not a JSON object")
    if _NUL in line and _REAL_NUL.search(line):
        raise ValueError("a NUL character, which PostgreSQL cannot store")
    if not fields.keys() <= _FIELDS:
        raise ValueError(f"unknown fields: {', '.join(sorted(fields.keys() - _FIELDS))}")
    get = fields.get
    row = RecordRow(
        _identity(fields["id"], fields["time"]),
        fields["time"],
        LEVELS.get(_checked(fields["level"], str, "level"), 0),
        fields["category"],
        get("step"),
        _checked(fields["message"], str, "message"),
        get("task_id"),
        get("run_id"),
        get("concept_id"),
        get("agent"),
        get("details"),
        get("duration_ms"),
    )
    if not row.level:
        raise ValueError(f"level is {fields['level']!r}, not one of {', '.join(LEVELS)}")
    if type(row.details) not in _OBJECTS or type(row.duration_ms) not in _NUMBERS:
        raise TypeError("details are no JSON object, or duration_ms is no number")
    _check_names(row)
    return row


def _check_names(row: RecordRow) -> None:
    """Raises TypeError for a category, step, agent or foreign id that is no short text."""
    for name in (row.step, row.task_id, row.run_id, row.concept_id, row.agent):
        if name is not None and (type(name) is not str or len(name) > _LONGEST):
            raise TypeError(f"one of {', '.join(_NAMES)} is no text of at most {MAX_NAME}")
    if type(row.category) is not str or len(row.category) > _LONGEST:
        raise TypeError(f"category is no text of at most {MAX_NAME} characters")


def _identity(id: str, micros: int) -> bytes:
    """Raises ValueError unless they are a UUIDv7 and its time, which partitions rely on."""
    if type(micros) is not int or not 0 <= micros <= END_OF_TIME:
        raise ValueError("time is not in microseconds since 1970")
    value = bytes.fromhex(id.replace("-", ""))
    if len(value) != 16 or value[6] >> 4 != 7 or value[8] >> 6 != 0b10:
        raise ValueError("id is not a UUID of version 7")
    if int.from_bytes(value[:6], "big") != micros // 1000:
        raise ValueError("id is not a UUIDv7 of the record's time")
    return value


def _checked(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name} is of the wrong type: {type(value).__name__}")
    return value
