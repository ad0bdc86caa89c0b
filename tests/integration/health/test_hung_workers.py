"""A worker that lives and works no more is found, told of and started anew; a busy one is not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloche.app import create_app
from cloche.process.heartbeat import heartbeats
from cloche.settings import load
from cloche.testing import BrokerProcess, wait_until
from tests import commands
from tests.acceptance.stack import Stack

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

    def _is_ready(self, times: int) -> bool:
        return self.output.count(self.ready) >= times  # without pages

    def pid_of(self, name: str) -> int:
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
        tmp_path_factory.mktemp("hung"), "-A", "tests.integration.health.project", environ=environ
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
    done = commands.cloche(*words, cwd=workers.directory, env=workers.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ps(workers: Workers) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(asked(workers, "ps", "--json"))["processes"]}


def test_a_stopped_worker_is_started_anew(workers: Workers, send: Any) -> None:
    old = workers.pid_of("one")
    os.kill(old, signal.SIGSTOP)
    send("after the stop")
    wait_until(lambda: "one hangs: 1 message waits in default" in workers.output, "the line", 60)
    wait_until(lambda: "end after the stop" in lines(workers), "the task", 40)
    wait_until(lambda: workers.pid_of("one") not in (0, old), "another process")
    assert not psutil.pid_exists(old) or psutil.Process(old).status() == "zombie"
    event = workers.events()[-1]
    assert (event["kind"], event["worker"].partition("@")[0]) == ("hung-worker", "one")
    assert event["why"] == "it is stopped by a signal"
    assert lines(workers).count("start after the stop") == 1
    row = ps(workers)["one"]
    assert row["restarts"] == 1
    assert row["was_hung"].startswith("it hung (it is stopped by a signal) and was restarted at ")
    assert ps(workers)["alone"]["was_hung"] == ""
    assert "one: it hung (it is stopped by a signal) and was restarted at " in asked(workers, "ps")


def test_a_worker_whose_consumer_is_wedged_is_started_anew_with_its_stacks(
    workers: Workers, send: Any
) -> None:
    (workers.directory / "wedge").touch()
    wait_until(lambda: not (workers.directory / "wedge").exists(), "the wedge")
    send("for the wedged", queue="default")
    send("for the other", queue="alone")
    wait_until(lambda: "end for the wedged" in lines(workers), "its task", 60)
    wait_until(lambda: "end for the other" in lines(workers), "the other's", 60)
    event = next(e for e in reversed(workers.events()) if e["kind"] == "hung-worker")
    assert event["why"] == "its loop stands still"
    assert "wedged_on_purpose" in event["stacks"]
    assert "its loop stands still; its stacks are in " in workers.output


def test_busy_paused_and_brokerless_workers_are_left_alone(
    workers: Workers, send: Any, own_broker: BrokerProcess
) -> None:
    wait_until(lambda: len(list(heartbeats(workers.directory / ".cloche"))) == 2, "both heartbeats")
    before = (workers.pid_of("one"), workers.pid_of("alone"), len(workers.events()))
    told = workers.output.count(" hangs")
    for queue in ("default", "alone"):  # all slots busy for longer than the watchdog waits
        send(f"long in {queue}", 10, queue)
        send(f"behind it in {queue}", 0, queue)
    wait_until(
        lambda: sum("end behind it" in line for line in lines(workers)) == 2, "their end", 40
    )

    with own_broker.client() as client:
        client.sadd("cloche:paused", "default")
        send("paused")
        send("meanwhile", 8, "alone")
        wait_until(lambda: "end meanwhile" in lines(workers), "a long pause", 40)
        assert "start paused" not in lines(workers)
        client.srem("cloche:paused", "default")
    wait_until(lambda: "end paused" in lines(workers), "it goes on", 20)

    own_broker.kill()
    wait_until(lambda: "the broker does not answer" in workers.output, "the outage to be noticed")
    signal.sigtimedwait([], 8)  # longer than the watchdog waits
    own_broker.start()
    send("after the outage")
    wait_until(lambda: "end after the outage" in lines(workers), "it goes on", 40)
    assert (workers.pid_of("one"), workers.pid_of("alone"), len(workers.events())) == before
    assert workers.output.count(" hangs") == told
