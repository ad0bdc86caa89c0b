"""A worker that lives and works no more is found, told of and started anew; a busy one is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloche.app import create_app
from cloche.process.pulse import pulses
from cloche.settings import load
from cloche.testing import BrokerProcess
from tests.acceptance.stack import Stack, wait_for

ROOT = Path(__file__).parents[3]
LEAN = {
    "CLOCHE_BEAT__ENABLED": "false",
    "CLOCHE_SERVICE__ENABLED": "false",
    "CLOCHE_DASHBOARD__ENABLED": "false",
    "CLOCHE_BROKER__EMBEDDED": "never",
    "CLOCHE_BROKER__LEASE": "3",
    "CLOCHE_WATCHDOG__AFTER": "6",
    "CLOCHE_STOP__SOFT": "2",
    "CLOCHE_STOP__GRACE": "4",
    "CLOCHE_WORKERS": '{"one": {"concurrency": 1, "pool": "prefork", "queues": ["default"]},'
    ' "alone": {"pool": "solo", "queues": ["alone"]}}',
    "PYTHONPATH": str(ROOT),
}


class Workers(Stack):
    """``cloche up`` with two workers and a broker of the test's own."""

    def wait_ready(self, deadline: float = 60.0) -> Workers:
        wait_for("both workers", lambda: "ready in" in self.output, deadline)
        return self

    def pid(self, name: str) -> int:
        """Of its process; 0 while it has none."""
        return next((int(process.pid) for process in self.processes(name)), 0)

    def events(self) -> list[dict[str, Any]]:
        path = self.directory / ".cloche" / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def own_broker() -> Iterator[BrokerProcess]:
    with BrokerProcess(persistent=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def workers(
    own_broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    environ = {**LEAN, "CLOCHE_BROKER__URL": own_broker.url}
    found = Workers(
        tmp_path_factory.mktemp("deaf"), "-A", "tests.integration.health.project", environ=environ
    )
    with found:
        yield found


@pytest.fixture(scope="module")
def send(own_broker: BrokerProcess, workers: Workers) -> Any:
    app = create_app("sender", load({"broker.url": own_broker.url}, environ={}).settings)
    ledger = workers.directory / "ledger"

    def send(text: str, seconds: float = 0, queue: str = "default") -> None:
        app.send_task(
            "tasks.health.note", (str(ledger), text, seconds), queue=queue, ignore_result=True
        )

    return send


def lines(workers: Workers) -> list[str]:
    ledger = workers.directory / "ledger"
    return ledger.read_text().splitlines() if ledger.exists() else []


def asked(workers: Workers, *words: str) -> str:
    """What another command of the same directory says."""
    return subprocess.run(
        [sys.executable, "-m", "cloche", *words],
        cwd=workers.directory,
        env=workers.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def ps(workers: Workers) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(asked(workers, "ps", "--json"))["processes"]}


def test_a_stopped_worker_is_started_anew(workers: Workers, send: Any) -> None:
    old = workers.pid("one")
    os.kill(old, signal.SIGSTOP)
    send("after the stop")
    wait_for("the line", lambda: "one is deaf: 1 message waits in default" in workers.output, 60)
    wait_for("the task", lambda: "end after the stop" in lines(workers), 40)
    wait_for("another process", lambda: workers.pid("one") not in (0, old))
    assert not psutil.pid_exists(old) or psutil.Process(old).status() == "zombie"
    event = workers.events()[-1]
    assert (event["kind"], event["worker"].partition("@")[0]) == ("deaf-worker", "one")
    assert event["why"] == "it is stopped by a signal"
    assert lines(workers).count("start after the stop") == 1
    row = ps(workers)["one"]
    assert row["restarts"] == 1
    assert row["was_deaf"].startswith("deaf (it is stopped by a signal) and started anew ")
    assert ps(workers)["alone"]["was_deaf"] == ""
    assert "one: it was deaf (it is stopped by a signal) and started anew " in asked(workers, "ps")


def test_a_worker_whose_consumer_is_wedged_is_started_anew_with_its_stacks(
    workers: Workers, send: Any
) -> None:
    (workers.directory / "wedge").touch()
    wait_for("the wedge", lambda: not (workers.directory / "wedge").exists())
    send("for the wedged", queue="default")
    send("for the other", queue="alone")
    wait_for("its task", lambda: "end for the wedged" in lines(workers), 60)
    wait_for("the other's", lambda: "end for the other" in lines(workers), 60)
    event = next(e for e in reversed(workers.events()) if e["kind"] == "deaf-worker")
    assert event["why"] == "its loop stands still"
    assert "wedged_on_purpose" in event["stacks"]
    assert "its loop stands still; its stacks are in " in workers.output


def test_busy_paused_and_brokerless_workers_are_left_alone(
    workers: Workers, send: Any, own_broker: BrokerProcess
) -> None:
    wait_for("both pulses", lambda: len(list(pulses(workers.directory / ".cloche"))) == 2)
    before = (workers.pid("one"), workers.pid("alone"), len(workers.events()))
    told = workers.output.count(" is deaf")
    for queue in ("default", "alone"):  # all slots busy for longer than the watchdog waits
        send(f"long in {queue}", 10, queue)
        send(f"behind it in {queue}", 0, queue)
    wait_for("their end", lambda: sum("end behind it" in line for line in lines(workers)) == 2, 40)

    with own_broker.client() as client:
        client.sadd("cloche:paused", "default")
        send("paused")
        send("meanwhile", 8, "alone")
        wait_for("a long pause", lambda: "end meanwhile" in lines(workers), 40)
        assert "start paused" not in lines(workers)
        client.srem("cloche:paused", "default")
    wait_for("it goes on", lambda: "end paused" in lines(workers), 20)

    own_broker.kill()
    wait_for("the outage to be noticed", lambda: "the broker does not answer" in workers.output)
    signal.sigtimedwait([], 8)  # longer than the watchdog waits
    own_broker.start()
    send("after the outage")
    wait_for("it goes on", lambda: "end after the outage" in lines(workers), 40)
    assert (workers.pid("one"), workers.pid("alone"), len(workers.events())) == before
    assert workers.output.count(" is deaf") == told
