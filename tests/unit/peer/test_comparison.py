"""Verdicts of the peers' suites, and what is written about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.peer import report
from tests.peer.comparison import Pair, Verdict, compare
from tests.peer.inside.celery import RedisUrl
from tests.peer.inside.kombu import ours
from tests.peer.results import Attempt, Configuration, Result, Results
from tests.peer.runner import PLUGINS
from tests.peer.suites import SUITES, Suite

STOCK, OURS = Configuration("prefork", "stock"), Configuration("prefork", "ours")


@pytest.mark.parametrize(
    ("stock", "ours", "verdict"),
    [
        ("passed", "passed", Verdict.BOTH),
        ("passed", "failed", Verdict.STOCK_ONLY),
        ("passed", "hung", Verdict.STOCK_ONLY),
        ("passed", "skipped", Verdict.STOCK_ONLY),
        ("failed", "passed", Verdict.OURS_ONLY),
        ("xfailed", "xfailed", Verdict.NEITHER),
    ],
)
def test_only_passing_counts(stock: str, ours: str, verdict: Verdict) -> None:
    assert Pair("t", Result(stock), Result(ours)).verdict is verdict


def test_what_is_wanted_to_differ_does_not_count() -> None:
    stock, ours = Result("passed"), Result("failed")
    assert Pair("t", stock, ours, "why").verdict is Verdict.WANTED
    assert Pair("t", stock, stock, "why").verdict is Verdict.BOTH


def test_the_reason_is_found_by_the_start_of_a_name(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for configuration, outcome in ((STOCK, "passed"), (OURS, "failed")):
        for test in ("t/x.py::a[1]", "t/x.py::b"):
            results.record(configuration, test, Result(outcome))
    found = compare(results, "prefork", {"t/x.py::a": "why"})
    assert [pair.verdict for pair in found] == [Verdict.WANTED, Verdict.STOCK_ONLY]


def test_a_later_run_replaces_the_results_of_its_tests_only(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for configuration in (STOCK, OURS):
        for test in ("a", "b"):
            results.record(configuration, test, Result("passed"))
    again = Results(tmp_path / "results.json")
    again.record(OURS, "b", Result("failed", why="E  no\n"))
    found = compare(Results(tmp_path / "results.json"), "prefork", {})
    assert [pair.verdict for pair in found] == [Verdict.BOTH, Verdict.STOCK_ONLY]
    assert found[1].ours.reason == "no"


def test_a_test_that_ran_on_one_url_only_is_not_compared(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.record(STOCK, "a", Result("passed"))
    assert compare(results, "prefork", {}) == []


def event(outcome: str, why: str | None = None) -> dict[str, Any]:
    return {"outcome": outcome, "seconds": 1.0, "expected": None, "why": why}


def test_a_failing_teardown_fails_the_test() -> None:
    attempt = Attempt()
    for outcome in ("passed", "passed", "failed"):
        attempt.take(event(outcome, "why"))
    assert attempt.result("r") == Result("failed", 3.0, 0, "why", "r")


def test_a_rerun_forgets_what_was_before() -> None:
    attempt = Attempt()
    for outcome in ("passed", "rerun", "passed", "passed"):
        attempt.take(event(outcome))
    assert attempt.result("r") == Result("passed", 4.0, 1, None, "r")


def test_only_the_generated_part_of_the_document_changes(tmp_path: Path) -> None:
    document = tmp_path / "compatibility.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    pair = Pair("t/integration/test_x.py::test_y", Result("passed"), Result("failed", why="E  no"))
    for _ in range(2):
        report.write(document, {"celery": {"threads": [pair]}})
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("- `test_x.py::test_y` (threads): failed: no") == 1
    assert "| celery | threads | 1 | 0 | 0 | 0 | 0 | 1 |" in text


def test_our_url_counts_as_redis_and_stays_itself() -> None:
    url = RedisUrl("cloche+redis://127.0.0.1:1/0")
    assert url.startswith("redis")
    assert url.startswith(("cloche+", "rpc"))
    assert not url.startswith("cache")
    assert str(url) == "cloche+redis://127.0.0.1:1/0"


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_each_suite_has_its_adapter(suite: Suite) -> None:
    assert (PLUGINS / "inside" / f"{suite.adapter}.py").is_file()
    assert len(suite.sha256) == 64
    assert suite.pools


@pytest.mark.parametrize(
    ("url", "becomes"),
    [
        ("redis://a:1/2", "cloche+redis://a:1/2"),
        ("rediss://a;redis://b", "cloche+rediss://a;cloche+redis://b"),
        (["redis://a", "amqp://b"], ["cloche+redis://a", "amqp://b"]),
        ("localhost", "localhost"),
        (None, None),
    ],
)
def test_every_redis_url_of_kombus_becomes_ours(url: object, becomes: object) -> None:
    assert ours(url) == becomes
