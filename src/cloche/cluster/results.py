"""What the result backend knows of one task, read without trusting what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery import Celery, states
from celery.backends.base import DisabledBackend, KeyValueStoreBackend
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import loads, prepare_accept_content

from cloche.health.answers import readable
from cloche.plain import json_value, said
from cloche.records import TaskRun

_ACCEPT = prepare_accept_content(["json"])
#: State of a result that is there but that we refuse to decode.
UNREADABLE = "UNREADABLE"


def read_run(app: Celery, task_id: str) -> tuple[TaskRun, Any] | None:
    """What is stored under ``task_id``: the run, and the result or progress as plain data.

    None when nothing is stored (never ran, not finished, or expired). Only JSON is ever
    decoded, whatever the application accepts: a pickled result is reported, not loaded.
    Exceptions stay the dictionaries they are stored as. Raises the backend's own errors
    when it cannot be reached.
    """
    backend = app.backend
    if isinstance(backend, DisabledBackend):
        return None
    try:
        meta = _meta(backend, task_id)
    except (ContentDisallowed, DecodeError, UnicodeDecodeError):
        return TaskRun.told(id=task_id, name=None, state=UNREADABLE), None
    if meta is None:
        return None
    return _run(task_id, meta), json_value(meta.get("result"))


def _meta(backend: Any, task_id: str) -> Mapping[str, Any] | None:
    if isinstance(backend, KeyValueStoreBackend):
        # Not get_task_meta(): it would build exception objects, and retry without end
        # when result_backend_always_retry is set.
        payload = backend.get(backend.get_key_for_task(task_id))
        return None if not payload else _decoded(backend, payload)
    if not readable(backend):
        return None
    backend.accept = backend.accept & _ACCEPT
    meta = backend._get_task_meta_for(task_id)
    if meta.get("status") == states.PENDING and meta.get("result") is None:
        return None
    return dict(meta)


def _decoded(backend: Any, payload: Any) -> Mapping[str, Any]:
    data = loads(
        payload,
        content_type=backend.content_type,
        content_encoding=backend.content_encoding,
        accept=_ACCEPT,
    )
    return data if isinstance(data, dict) else {"status": UNREADABLE, "result": None}


def _run(task_id: str, meta: Mapping[str, Any]) -> TaskRun:
    state = str(meta.get("status") or states.PENDING)
    failed = state in states.EXCEPTION_STATES
    result = meta.get("result")
    return TaskRun.told(
        id=task_id,
        name=meta.get("name"),
        state=state,
        worker=meta.get("worker"),
        queue=meta.get("queue"),
        args=_text(meta.get("args")),
        kwargs=_text(meta.get("kwargs")),
        result=None if failed or result is None else _text(result),
        exception=exception_text(result) if failed else None,
        traceback=_text(meta.get("traceback")),
        finished=_seconds(meta.get("date_done")),
        retries=meta.get("retries") or 0,
    )


def exception_text(stored: object) -> str:
    """``{"exc_type": "ValueError", "exc_message": ["no"]}`` -> ``ValueError: no``."""
    if not isinstance(stored, dict):
        return str(stored)
    message = stored.get("exc_message")
    parts = message if isinstance(message, list | tuple) else [message]
    text = ", ".join(said(part) for part in parts if part not in (None, ""))
    kind = str(stored.get("exc_type") or "Exception")
    return f"{kind}: {text}" if text else kind


def _text(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else repr(value)


def _seconds(value: object) -> float | None:
    """``date_done`` is ISO 8601 text or a datetime, in UTC when it carries no offset."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
