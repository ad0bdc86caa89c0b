"""One odd task never hides the others: whatever events and results hold, they can be shown."""

from __future__ import annotations

import os
from typing import Any

import orjson
import pytest
from celery import Celery

from cloche.cluster.results import _run
from cloche.history.live import LiveTasks
from cloche.metrics import Metrics
from cloche.plain import json_value, printable, search_words
from cloche.records import Snapshot
from cloche.web.pages import render

_ODD = os.fsdecode(b"caf\xe9.txt")
_VALUES: list[Any] = [_ODD, "\0", 10**400, float("nan"), -1, 1e300, True, b"\xff", {"a": _ODD}, [1]]


def _event(kind: str, number: int, **fields: Any) -> dict[str, Any]:
    made = {"type": kind, "uuid": f"id-{number}", "hostname": "w@h", "clock": number}
    return {**made, "timestamp": 1000.0 + number, "local_received": 1000.0 + number, **fields}


@pytest.mark.parametrize("odd", _VALUES, ids=range(len(_VALUES)))
def test_odd_events_leave_the_others_to_be_seen(odd: Any) -> None:
    metrics = Metrics(lambda: Snapshot(0.0))
    live = LiveTasks(Celery("odd", broker="memory://"), on_event=metrics.event)
    live._on_event(_event("task-received", 1, name="good", args="()"))
    for number, field in enumerate(
        ("name", "args", "result", "exception", "traceback", "retries", "runtime", "queue", "uuid",
         "hostname", "timestamp", "state", "eta", "sent", "failed", "started"),
        start=2,
    ):  # fmt: skip
        for kind in ("task-sent", "task-started", "task-failed", "task-succeeded"):
            live._on_event(_event(kind, number, **{"name": "odd", field: odd}))
    runs = live.recent(100)
    assert "id-1" in {run.id for run in runs}
    orjson.dumps(runs)
    for run in runs:
        render("dashboard/run.html", run=run).encode()
    render("dashboard/tasks.html", runs=runs, limit=100).encode()
    assert b"good" in metrics.text()


@pytest.mark.parametrize("odd", _VALUES, ids=range(len(_VALUES)))
def test_odd_results_can_be_shown(odd: Any) -> None:
    fields = ("name", "result", "traceback", "worker", "queue", "args", "kwargs", "date_done",
              "retries", "status")  # fmt: skip
    for state in ("SUCCESS", "FAILURE"):
        for field in fields:
            run = _run("id", {"status": state, "result": 1, field: odd})
            orjson.dumps([run, json_value(odd)])
            render("dashboard/run.html", run=run).encode()


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("a\x1b[2J\x9b\x07\n\t\r\u202e\u2028é中") == (
        "a\\x1b[2J\\x9b\\x07\\n\\t\\r\\u202e\\u2028é中"
    )
    assert printable(_ODD) == "caf\\udce9.txt"


def test_words_of_languages_without_spaces_stand_alone() -> None:
    assert search_words("plain é").split() == ["plain", "e"]
    assert search_words("连接Redis失败").split() == ["连", "接", "Redis", "失", "败"]
