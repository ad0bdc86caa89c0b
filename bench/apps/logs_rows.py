"""No buffer and no broker: each record is inserted, and committed, where it is logged."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import psycopg

from bench.apps.logs_case import DATABASE, SQLITE
from cloche.logs.record import LEVELS, LogRecord, stamp

_COLUMNS = ("id", "time", "level", "category", "step", "message", "task_id", "run_id", "agent")
_INSERT = (
    f"INSERT INTO cloche_log_records ({', '.join(_COLUMNS)}, details, duration_ms) "
    f"VALUES ({', '.join(['?'] * (len(_COLUMNS) + 2))})"
)
_TEXT = "INSERT INTO cloche_log_records_text (rowid, message) VALUES (last_insert_rowid(), ?)"
_link: Any
if SQLITE:
    _link = sqlite3.connect(DATABASE.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
    _link.execute("PRAGMA synchronous=NORMAL")
else:
    _link = psycopg.connect(DATABASE, autocommit=True)
    _INSERT = _INSERT.replace("?", "%s")


def log(**given: Any) -> None:
    record = LogRecord(*stamp(), "info", "", None, "")
    values = (
        record.id.bytes if SQLITE else record.id,
        record.micros if SQLITE else record.time,
        LEVELS[given["level"]],
        *(given[name] for name in _COLUMNS[3:]),
        json.dumps(given["details"]),
        given["duration_ms"],
    )
    if not SQLITE:
        _link.execute(_INSERT, values)
        return
    _link.execute("BEGIN IMMEDIATE")
    _link.execute(_INSERT, values)
    _link.execute(_TEXT, (given["message"],))
    _link.execute("COMMIT")


def finish() -> None:
    """Nothing is in memory."""
