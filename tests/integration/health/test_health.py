"""``cloche health`` tells what is so, in one exit code; the web pages' probes agree."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloche.testing import BrokerProcess, wait_until
from tests import commands
from tests.acceptance.stack import Stack

ROOT = Path(__file__).parents[3]
APP = ("-A", "tests.integration.health.project")


@pytest.fixture(scope="module")
def own_broker() -> Iterator[BrokerProcess]:
    with BrokerProcess(persistent=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def stack(own_broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environ = {
        "CLOCHE_BROKER__URL": own_broker.url,
        "CLOCHE_BROKER__EMBEDDED": "never",
        "CLOCHE_WORKERS": '{"one": {"concurrency": 1, "queues": ["default", "download_queue"]},'
        ' "alone": {"pool": "solo", "queues": ["alone"]}}',
        "CLOCHE_BEAT__SCHEDULES": '{"nightly": {"task": "tasks.health.note", "cron": "0 3 * * *"}}',
        "CLOCHE_BEAT__LOCK": "2",
        "PYTHONPATH": str(ROOT),
    }
    with Stack(tmp_path_factory.mktemp("health"), *APP, environ=environ) as found:
        yield found


def ask(stack: Stack, *arguments: str, app: bool = True) -> tuple[int, dict[str, Any]]:
    """Exit code and checks by name."""
    words = ("health", "--json", *arguments, *(APP if app else ()))
    done = commands.cloche(*words, cwd=stack.directory, env=stack.environ)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["healthy"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in told["checks"]}


def readyz(url: str) -> dict[str, bool]:
    checks = httpx2.get(f"{url}/readyz", timeout=15).json()["checks"]
    return {name: check["ok"] for name, check in checks.items() if check["needed"]}


def test_all_is_well(stack: Stack) -> None:
    wait_until(lambda: ask(stack)[0] == 0, "all to be well", 30)
    _, checks = ask(stack)
    assert list(checks) == [
        *("broker", "results", "database", "worker one", "worker alone"),
        *("queue alone", "queue default", "queue download_queue", "queue logs"),
        *("queue maintenance_queue", "beat"),
    ]
    assert "2 schedules, sent by pid " in checks["beat"]["detail"]
    code, needed = ask(stack, "--ready")
    assert code == 0
    for url in (stack.service, stack.dashboard):
        assert readyz(url) == {name: check["ok"] for name, check in needed.items()}
        assert httpx2.get(f"{url}/healthz").status_code == httpx2.codes.OK
    assert set(ask(stack, "--only", "queue,beat")[1]) == {
        *("queue alone", "queue default", "queue download_queue", "queue logs"),
        *("queue maintenance_queue", "beat"),
    }


def test_the_pulses_alone_answer_for_the_processes_here(stack: Stack) -> None:
    code, checks = ask(stack, "--live", app=False)
    assert (code, set(checks)) == (0, {"worker one", "worker alone", "beat"})
    assert ask(stack, "--worker", "one", "--ready", app=False)[0] == 0
    code, checks = ask(stack, "--worker", "nobody", app=False)
    assert code == 1
    assert "no worker nobody has a heartbeat" in checks["heartbeat"]["detail"]


def test_a_busy_solo_worker_is_well_and_a_queue_nobody_consumes_is_not(
    stack: Stack, own_broker: BrokerProcess
) -> None:
    ledger = stack.directory / "ledger"
    send = (
        "from tests.integration.health.project import note;"
        f"note.apply_async(({str(ledger)!r}, 'long', 6), queue='alone', ignore_result=True);"
        f"note.apply_async(({str(ledger)!r}, 'never'), queue='orphaned', ignore_result=True)"
    )
    subprocess.run([sys.executable, "-c", send], env=stack.environ, check=True, timeout=60)
    wait_until(ledger.exists, "its start")
    _, checks = ask(stack, "--only", "workers", "--timeout", "1")
    assert checks["worker alone"]["ok"], checks
    orphaned = '["orphaned"]'
    _, checks = ask(stack, "--set", f'routes=[{{"pattern": "x", "queue": {orphaned[1:-1]}}}]')
    assert checks["queue orphaned"]["detail"] == "1 waiting and nobody consumes it"
    assert not checks["queue orphaned"]["ok"]
    with own_broker.client() as client:
        client.delete("orphaned")
    wait_until(lambda: "end long" in ledger.read_text(), "its end", 20)


def test_what_does_not_work_is_named(stack: Stack, own_broker: BrokerProcess) -> None:
    (worker,) = stack.processes("one")
    (beat,) = stack.processes("beat")
    worker.send_signal(signal.SIGSTOP)
    beat.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: ask(stack, "--live", app=False)[0] == 1, "the silence", 20)
        _, checks = ask(stack, "--timeout", "2")
        bad = {name for name, check in checks.items() if not check["ok"]}
        assert {"worker one", "beat"} <= bad
        assert "no sign of life for" in checks["worker one"]["detail"]
        assert "nobody sends 2 schedules" in checks["beat"]["detail"]
        assert checks["worker alone"]["ok"]
        assert ask(stack, "--worker", "alone", app=False)[0] == 0
    finally:
        worker.send_signal(signal.SIGCONT)
        beat.send_signal(signal.SIGCONT)
    wait_until(lambda: ask(stack, "--live", app=False)[0] == 0, "their heartbeats", 20)

    own_broker.kill()
    code, checks = ask(stack)
    assert code == 1
    assert not checks["broker"]["ok"]
    assert "the broker does not answer" in checks["workers"]["detail"]
    _, needed = ask(stack, "--ready")
    for url in (stack.service, stack.dashboard):
        assert httpx2.get(f"{url}/readyz", timeout=15).status_code == 503
        assert readyz(url) == {name: check["ok"] for name, check in needed.items()}
    assert ask(stack, "--live", app=False)[0] == 0, "an outage is no reason to restart anybody"
    own_broker.start()
    wait_until(lambda: ask(stack)[0] == 0, "all to be well again", 40)


def test_a_broker_that_hangs_does_not_hang_the_check(
    stack: Stack, own_broker: BrokerProcess
) -> None:
    own_broker.freeze()
    try:
        code, checks = ask(stack, "--ready", "--timeout", "0.5")
    finally:
        own_broker.thaw()
    assert code == 1
    assert "no answer for" in checks["broker"]["detail"]
    assert checks["broker"]["seconds"] < 3
    wait_until(lambda: ask(stack)[0] == 0, "all to be well again", 40)
