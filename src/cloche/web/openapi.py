"""What OpenAPI says of our APIs beyond what FastAPI finds out: errors, files, streams, the
dashboard (which is Starlette's), the log's read API.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter

from cloche.logs.read.error_groups import ErrorReport
from cloche.logs.read.summary import Summary
from cloche.logs.record import LEVELS
from cloche.records import Gap, Snapshot, TaskRun
from cloche.web.logs.query import parameters
from cloche.web.problems import PROBLEM_TYPE, Problem

Json = dict[str, Any]
_TEXT: Json = {"type": ["string", "null"]}
_OBJECT: Json = {"type": "object"}
_PATH_PART: Json = {"type": "string", "minLength": 1, "pattern": r"^[^\n]+$"}
_RECORD: Json = {
    "type": "object",
    "required": ["id", "time", "level", "category", "message"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "time": {"type": "string", "format": "date-time"},
        "level": {"enum": [*LEVELS]},
        "category": {"type": "string"},
        "message": {"type": "string"},
        **dict.fromkeys(("step", "task_id", "run_id", "concept_id", "agent"), _TEXT),
        "details": {"type": ["object", "null"]},
        "duration_ms": {"type": ["number", "null"]},
    },
}
_TRACE: Json = {
    "type": "object",
    "required": ["run_id", "status", "total", "complete", "steps", "gaps", "records", "seconds"],
    "properties": {
        "run_id": {"type": "string"},
        "records": {"type": "array", "items": _RECORD},
        **{name: {"type": "array", "items": _OBJECT} for name in ("steps", "gaps")},
    },
}


def _inlined(schema: Json) -> Json:
    """A schema without ``$defs``, so that it may stand inside another one."""
    definitions = schema.pop("$defs", {})

    def inline(part: Any) -> Any:
        if isinstance(part, dict):
            target = str(part.get("$ref", "")).rpartition("/")[2]
            if target:
                return inline(definitions[target])
            return {key: inline(value) for key, value in part.items()}
        return [inline(one) for one in part] if isinstance(part, list) else part

    return dict(inline(schema))


def _schema(kind: type) -> Json:
    return _inlined(TypeAdapter(kind).json_schema(mode="serialization"))


#: Parameters besides the filter's, and the answer, of each endpoint of the log's API.
_LOGS: Mapping[str, tuple[tuple[str, ...] | None, Json]] = {
    "page": (
        ("limit", "before", "after"),
        {
            "type": "object",
            "required": ["records", "older", "newer"],
            "properties": {
                "records": {"type": "array", "items": _RECORD},
                "older": _TEXT,
                "newer": _TEXT,
            },
        },
    ),
    "summary": ((), _schema(Summary)),
    "errors": ((), _schema(ErrorReport)),
    "export": (("format",), {}),
    "live": (("after",), {}),
    "trace": (None, _TRACE),
    "show": (None, _RECORD),
}
_OTHER_TYPES = {
    "export": ("application/x-ndjson", "text/csv"),
    "live": ("text/event-stream",),
}


def problems(*statuses: int) -> dict[str, Json]:
    """Responses of those statuses, and of whatever else a server may have to refuse."""
    named = {str(status): any_problem(HTTPStatus(status).phrase) for status in statuses}
    return {**named, "default": any_problem("Anything else that is refused")}


def any_problem(description: str) -> Json:
    schema = Problem.model_json_schema()
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": schema}}}


def content(*types: str, description: str) -> Json:
    """A response that is no JSON."""
    schema: Json = {"schema": {"type": "string"}}
    return {"description": description, "content": dict.fromkeys(types, schema)}


def log_operation(path: str, name: str) -> Json:
    """The operation of one endpoint of the log's API: ``name`` is a method of `LogsApi`."""
    extra, answer = _LOGS[name]
    inside = [
        # A line break is in no path that Starlette knows.
        {"name": part, "in": "path", "required": True, "schema": _PATH_PART}
        for part in re.findall(r"{(\w+)", path)
    ]
    taken = {str(one["name"]) for one in inside}
    asked = [] if extra is None else parameters(*extra)
    other = _OTHER_TYPES.get(name)
    good = (
        content(*other, description="As it comes")
        if other
        else {"description": "Found", "content": {"application/json": {"schema": answer}}}
    )
    return {
        "parameters": [*inside, *(one for one in asked if one["name"] not in taken)],
        "responses": {"200": good, **problems(404, 422, 503)},
    }


def dashboard_document(log_paths: Iterable[tuple[str, str, str]]) -> Json:
    """The dashboard's API; ``log_paths`` are (path, method of `LogsApi`, its docstring)."""
    gaps = {"type": "array", "items": _schema(Gap)}
    task_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    limit = {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50},
    }
    state = {"name": "state", "in": "query", "schema": {"type": "string"}}
    paths: Json = {
        "/api/snapshot": _get("Health, workers, queues and gaps now", _snapshot(gaps)),
        "/api/tasks": _get(
            "Recent tasks, newest first", _tasks(gaps), [limit, state], problems(422, 503)
        ),
        "/api/tasks/{id}": _get(
            "All that is known of one task", _schema(TaskRun), [task_id], problems(404, 503)
        ),
    }
    for path, name, text in log_paths:
        about = log_operation(path, name)
        paths[path.replace(":path", "")] = {"get": {"summary": text, **about}}
    info = {"title": "Cloche's dashboard", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _get(
    summary: str,
    schema: Json,
    asked: list[Json] | None = None,
    refused: dict[str, Json] | None = None,
) -> Json:
    good = {"description": "Found", "content": {"application/json": {"schema": schema}}}
    operation = {"summary": summary, "responses": {"200": good, **(refused or problems())}}
    return {"get": {**operation, "parameters": asked or []}}


def _snapshot(gaps: Json) -> Json:
    fields = {"ok": {"type": "boolean"}, "snapshot": _schema(Snapshot), "events": gaps}
    return {"type": "object", "required": [*fields], "properties": fields}


def _tasks(gaps: Json) -> Json:
    fields = {"tasks": {"type": "array", "items": _schema(TaskRun)}, "gaps": gaps}
    return {"type": "object", "required": [*fields], "properties": fields}
