"""One task from two witnesses: its events and its stored result."""

from __future__ import annotations

from dataclasses import fields, replace

from celery import Celery, states
from starlette.responses import Response

from cloche.cluster import read_run
from cloche.health.answers import one_line
from cloche.history.live import LiveTasks
from cloche.records import TaskRun
from cloche.web.problems import problem


def find_run(app: Celery, live: LiveTasks, task_id: str) -> TaskRun | None:
    """What events and result backend together know of a task; None when neither does.

    Raises the backend's own errors when only it could know.
    """
    seen = live.get(task_id)
    try:
        stored = read_run(app, task_id)
    except Exception:
        if seen is None:
            raise
        stored = None
    if stored is None:
        return seen
    return stored[0] if seen is None else joined(seen, stored[0])


def silent_backend(error: Exception) -> Response:
    """503 for whatever a result backend raised when it was read."""
    return problem(503, "The result backend does not answer", why=one_line(error))


def joined(seen: TaskRun, stored: TaskRun) -> TaskRun:
    """``seen`` with what it lacks from ``stored``; a final state beats one that is not."""
    blanks = {
        field.name: getattr(stored, field.name)
        for field in fields(TaskRun)
        if getattr(seen, field.name) is None
    }
    ended = stored.state in states.READY_STATES and seen.state not in states.READY_STATES
    # Events shorten long arguments and results; the backend keeps them whole.
    whole = {
        name: getattr(stored, name)
        for name in ("args", "kwargs", "result")
        if getattr(stored, name) is not None
    }
    return replace(seen, **{**blanks, **whole, **({"state": stored.state} if ended else {})})
