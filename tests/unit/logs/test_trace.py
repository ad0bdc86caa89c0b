"""A run told from its records."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from cloche.logs.read.trace import RECORDS, SPANS, trace_of
from tests.integration.logs_read.rows import NOON, made


def _made(after: float, message: str = "", **fields: Any) -> Any:
    return made(message, at=NOON, after=after, run_id="r", **fields)


def test_a_duration_inside_a_step_is_not_the_steps_own() -> None:
    trace = trace_of(
        "r",
        [
            _made(0, step="draft", details={"status": "started"}),
            _made(3, step="draft", duration_ms=2500.0),  # a call of a model, say
            _made(4, step="draft", details={"status": "done"}, duration_ms=4000.0),
            _made(5, step="loose", duration_ms=100.0),
            _made(6, step="loose", duration_ms=300.0),
        ],
        most=10,
    )
    assert trace is not None
    draft, loose = trace.steps
    assert (draft.busy_ms, draft.finished, len(draft.spans)) == (4000.0, 1, 1)
    assert (loose.busy_ms, loose.finished, loose.slowest_ms) == (400.0, 2, 300.0)


def test_a_step_that_has_not_ended_runs_and_is_no_gap() -> None:
    trace = trace_of(
        "r",
        [_made(0), _made(1, step="wait", details={"status": "started"}), _made(60, "still here")],
        most=10,
    )
    assert trace is not None
    assert trace.steps[0].state == "running"
    assert [gap.seconds for gap in trace.gaps] == [pytest.approx(1.0)] or trace.gaps == ()
    assert all(gap.until <= (NOON + timedelta(seconds=1)).timestamp() for gap in trace.gaps)


def test_a_long_run_is_counted_whole_and_kept_in_part() -> None:
    count = RECORDS + SPANS
    lines = (_made(n / 1000, step="s", duration_ms=1.0) for n in range(count))
    trace = trace_of("r", lines, most=count)
    assert trace is not None
    assert (trace.total, len(trace.records), len(trace.steps[0].spans)) == (count, RECORDS, SPANS)
    assert trace.steps[0].finished == count
    assert not trace.complete


def test_a_step_within_steps_nobody_wrote_of_has_them_around_it() -> None:
    trace = trace_of(
        "r", [_made(1, step="b"), _made(2, step="a/x/y"), _made(3, step="a/x")], most=9
    )
    assert trace is not None
    assert [step.path for step in trace.steps] == ["b", "a", "a/x", "a/x/y"]
    assert [step.records for step in trace.steps] == [1, 0, 1, 1]
