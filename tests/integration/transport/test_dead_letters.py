"""Every kind of dead letter, made by a real worker, and ``cloche dlq`` on each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cloche.testing import clean_environ, wait_until
from tests.integration.transport.harness import APP, Bench


def dlq(bench: Bench, folder: Path, *words: str) -> str:
    environ = clean_environ(REDIS_URL=bench.broker.url, CLOCHE_BROKER__TRANSPORT="cloche")
    command = [sys.executable, "-m", "cloche", "dlq", *words]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_all_kinds_are_listed_shown_retried_and_purged(bench: Bench, tmp_path: Path) -> None:
    conf = {"task_reject_on_worker_lost": True}
    bench.worker("prefork", 1, conf=conf, max_message_bytes=1_000_000)
    bench.client.lpush("celery", "junk, no message")
    bench.client.lpush("celery", json.dumps({"body": "W10=", "headers": {"task": "no.properties"}}))
    big = {"body": "x" * 1_000_001, "headers": {"task": "too.big"}, "properties": {}}
    bench.client.lpush("celery", json.dumps(big))
    bench.app.send_task("nobody.knows", [1])
    bench.send(666, "kill_child")
    bench.send(1)

    def letters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(dlq(bench, tmp_path, "list", "--json"))
        return found

    reasons = {"undecodable": 2, "oversized": 1, "unknown-task": 1, "max-deliveries": 1}
    # Workers tell their own reasons a moment after they rejected.
    told = lambda: Counter(letter["reason"] for letter in letters()) == reasons  # noqa: E731
    wait_until(told, "all are dead letters, each with its reason")
    found = letters()
    assert all(letter["at"] and letter["queue"] == "celery" for letter in found)
    (killer,) = (letter for letter in found if letter["reason"] == "max-deliveries")
    assert killer["task"] == f"{APP}.kill_child"
    assert [":child:" in death["consumer"] for death in killer["deaths"]] == [True] * 3
    assert bench.ledger.count("start") == {666: 3, 1: 1}
    for letter in found:
        assert letter["reason"] in dlq(bench, tmp_path, "show", letter["id"])
    assert dlq(bench, tmp_path, "retry", killer["id"]).strip() == "1 put back"
    wait_until(lambda: bench.ledger.count("start")[666] == 6, "deaths are forgiven: three more")
    wait_until(lambda: bench.client.zcard("cloche:dead-index") == 5, "and it is dead again")
    assert dlq(bench, tmp_path, "purge", "--all").strip() == "5 deleted"
    assert letters() == []
    wait_until(lambda: bench.inflight() == 0, "nothing in flight")
