"""The harness on a real server and real workers, with a handful of jobs. Never about speed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bench.benchmarks import BENCHMARKS
from bench.contestant import Contestant, all_contestants
from bench.guard import guarding, members
from bench.marks import Marks
from bench.report import outcome, summarise
from bench.run import Run, run_one
from bench.stage import Case

_DRAIN = BENCHMARKS[0]


def _solo() -> Contestant:
    """Stock Celery's solo pool, in the environment the tests run in."""
    found = next(one for one in all_contestants() if one.name == "celery solo")
    return replace(found, environment="own")


def _run(contestant: Contestant, jobs: int = 200) -> Run:
    with guarding() as guard:
        return run_one(_DRAIN, Case(contestant, "stored", jobs, deadline=60), guard)


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline, "not reached in 10 s"
        time.sleep(0.02)


def test_a_run_executes_every_job_once_and_counts_its_costs() -> None:
    run = _run(_solo())
    assert run.failure == ""
    figures = run.figures
    assert 0 < figures["jobs"] <= 190  # the first 5 % are warm-up
    assert figures["repeats"] == 0
    for name in ("rate", "cpu_us", "server_cpu_us", "reads", "rss_mib"):
        assert figures[name] > 0, name
    assert figures["commands"] > 1  # a fetch, an acknowledgement and a result at least


def test_a_worker_that_ends_is_reported_with_its_last_lines() -> None:
    broken = replace(_solo(), name="broken", worker=("python", "-c", "raise SystemExit('boom')"))
    run = _run(broken)
    assert run.figures == {}
    assert "the worker ended; 0 of 200 jobs ran" in run.failure
    assert "boom" in run.failure
    summary = summarise(_DRAIN, [run])[0]
    assert outcome(summary) == "failed: the worker ended; 0 of 200 jobs ran"


def test_a_command_has_started_when_its_page_answers() -> None:
    up = next(one for one in BENCHMARKS if one.name == "up")
    server = ("python", "-m", "http.server", "--bind", "127.0.0.1", "{port}")
    contestant = replace(_solo(), name="a server", worker=server, ready="/")
    with guarding() as guard:
        home = guard.scratch / "home"
        home.mkdir()
        runs = [
            run_one(up, Case(contestant, "ignored", 1, number, home=home), guard)
            for number in (1, 2)
        ]
    figures = summarise(up, runs)[0].figures
    assert [run.failure for run in runs] == ["", ""]
    assert figures.keys() == {"cold_s", "warm_s"}
    assert min(figures.values()) > 0


def test_a_contestant_that_is_missing_is_skipped_with_the_reason() -> None:
    run = _run(replace(_solo(), missing=lambda: "not built yet"))
    assert (run.skipped, run.failure, run.figures) == ("not built yet", "", {})


def test_nothing_is_left_of_a_harness_that_was_killed() -> None:
    script = (
        "import time\n"
        "from bench.guard import guarding; from bench.processes import spawn\n"
        "command = ['sh', '-c', 'sleep 60 & sleep 60']\n"
        "with guarding() as guard, spawn(command, guard, guard.scratch / 'log') as process:\n"
        "    print(process.session, guard.scratch, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        shown = harness.stdout.readline().split()
        session, scratch = int(shown[0]), Path(shown[1])
        try:
            _until(lambda: len(members(session)) == 3)
            os.kill(harness.pid, signal.SIGKILL)
            _until(lambda: not members(session) and not scratch.exists())
        finally:
            for process in members(session):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """Five slots."""
    return Marks(tmp_path / "marks", 5)


def test_marks_made_elsewhere_are_seen_here(marks: Marks, tmp_path: Path) -> None:
    other = Marks(tmp_path / "marks", 5)
    other.started(3)
    assert marks.begun()
    assert (marks.running(), marks.done()) == (1, 0)
    other.finished(3)
    assert (marks.running(), marks.done(), marks.done(0, 3)) == (0, 1, 0)
    assert marks.first_start() <= marks.last_finish() <= time.monotonic()


def test_a_job_that_ran_twice_is_counted_as_a_repeat(marks: Marks) -> None:
    for slot in (0, 1, 1):
        marks.started(slot)
        marks.finished(slot)
    assert (marks.done(), marks.repeats()) == (2, 1)


def test_a_delay_is_known_of_jobs_that_were_sent_and_started(marks: Marks) -> None:
    marks.sent(0)
    marks.started(0)
    marks.sent(1)
    assert len(marks.delays()) == 1
    assert marks.delays()[0] >= 0
