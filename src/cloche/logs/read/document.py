"""What is read as documents that programs read: JSON, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import orjson

from cloche.logs.read.trace import StepTrace, Trace
from cloche.logs.record import LogRecord

Format = Literal["jsonl", "csv"]
CONTENT_TYPES: dict[Format, str] = {"jsonl": "application/x-ndjson", "csv": "text/csv"}
#: Bytes that are handed on at a time.
_CHUNK = 64 * 1024
#: A cell that begins so is a formula to spreadsheets, whoever wrote the message
#: (OWASP, "CSV Injection"): it gets an apostrophe in front.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def dumped(value: object) -> bytes:
    """Records, traces, summaries and reports as JSON; times in ISO 8601."""
    return orjson.dumps(_plain(value), option=orjson.OPT_UTC_Z)


def _plain(value: object) -> object:
    if isinstance(value, LogRecord):
        return value.as_dict()
    if isinstance(value, StepTrace):
        return {"path": value.path, "depth": value.depth, "state": value.state, **_fields(value)}
    if isinstance(value, Trace):
        return {**_fields(value), "seconds": value.seconds}
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _fields(value: Any) -> dict[str, object]:
    return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}


def exported(
    records: Generator[LogRecord, None, None], format: Format
) -> Generator[bytes, None, None]:
    """The records as a file, in pieces, without holding more than a piece. Closing it closes
    ``records``."""
    lines = _json_lines(records) if format == "jsonl" else _csv_lines(records)
    with closing(records):
        piece = bytearray()
        for line in lines:
            piece += line
            if len(piece) >= _CHUNK:
                yield bytes(piece)
                piece.clear()
        yield bytes(piece)


def _json_lines(records: Iterable[LogRecord]) -> Iterator[bytes]:
    for record in records:
        yield orjson.dumps(record.as_dict(), option=orjson.OPT_APPEND_NEWLINE)


def _csv_lines(records: Iterable[LogRecord]) -> Iterator[bytes]:
    line = io.StringIO()
    writer = csv.writer(line)
    writer.writerow(("id", "time", *LogRecord._fields[2:]))
    for record in records:
        writer.writerow([_cell(value) for value in record.as_dict().values()])
        yield line.getvalue().encode()
        line.seek(0)
        line.truncate()
    yield line.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return orjson.dumps(value).decode() if isinstance(value, Mapping) else value
