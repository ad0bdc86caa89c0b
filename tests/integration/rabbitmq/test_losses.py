"""What dies, freezes or is cut on RabbitMQ loses no task of a hardened application."""

from __future__ import annotations

import collections
import json
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
from celery import Celery
from kombu import Connection

from cloche.testing import RabbitProcess, clean_environ, wait_until
from tests import commands
from tests.integration.app.conftest import LiveWorker, StartWorker
from tests.integration.rabbitmq.conftest import Worker, size
from tests.integration.transport.proxy import Proxy

IGNORED = {"ignore_result": True}


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


def publish(app: Celery, ledger: Path, count: int, seconds: float) -> None:
    for number in range(count):
        app.send_task("tasks.probe.note", (str(ledger), str(number), seconds), **IGNORED)


def ended(ledger: Path) -> collections.Counter[str]:
    return collections.Counter(line[4:] for line in lines(ledger) if line.startswith("end "))


def has_ended(ledger: Path, count: int) -> bool:
    return len(ended(ledger)) >= count


def kill_with_children(worker: LiveWorker) -> None:
    children = psutil.Process(worker.process.pid).children(recursive=True)
    worker.process.kill()
    for child in children:
        child.kill()
    worker.process.wait(10)


def test_kill_9_under_load_loses_nothing_and_repeats_only_what_ran(
    app: Celery, worker: Worker, queue: str, tmp_path: Path
) -> None:
    ledger, count = tmp_path / "ledger", 400
    publish(app, ledger, count, 0.01)
    for number in range(2):
        doomed = worker("-c", "4", "--name", f"doomed-{number}")
        goal = 50 * (number + 1) + 10
        wait_until(partial(has_ended, ledger, goal), "it to work")
        kill_with_children(doomed)
    worker("-c", "4", "--name", "heir")
    wait_until(lambda: len(ended(ledger)) == count, "all to end", 60)
    started = collections.Counter(line for line in lines(ledger) if line.startswith("start "))
    assert sum(started.values()) <= count + 2 * 4
    wait_until(lambda: size(app, queue) == 0, "an empty queue")


def test_a_frozen_idle_worker_that_is_killed_loses_nothing(
    app: Celery, worker: Worker, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    frozen = worker("-c", "4", "--name", "frozen")
    frozen.process.send_signal(signal.SIGSTOP)
    publish(app, ledger, 20, 0)
    kill_with_children(frozen)
    worker("-c", "4", "--name", "heir")
    wait_until(lambda: len(ended(ledger)) == 20, "all to end", 30)
    assert set(ended(ledger).values()) == {1}


def test_a_server_that_is_killed_loses_nothing_it_confirmed(
    app: Celery, rabbit: RabbitProcess, worker: Worker, tmp_path: Path
) -> None:
    ledger, count = tmp_path / "ledger", 300
    publish(app, ledger, count, 0.01)
    started = worker("-c", "4")
    wait_until(lambda: len(ended(ledger)) > 50, "it to work")
    rabbit.kill()
    rabbit.start()
    publish(app, ledger, 1, 0)  # the publisher finds it again by itself
    wait_until(lambda: len(ended(ledger)) == count, "all to end", 90)
    assert not started.ended
    assert sum(ended(ledger).values()) <= count + 1 + 4


def test_a_connection_that_is_cut_loses_nothing(
    rabbit: RabbitProcess, app: Celery, broker_url: str, queue: str,
    start_worker: StartWorker, tmp_path: Path,
) -> None:  # fmt: skip
    ledger, count = tmp_path / "ledger", 200
    with Proxy(rabbit.port) as proxy:
        publish(app, ledger, count, 0.02)
        started = start_worker(
            rabbit.url.replace(str(rabbit.port), str(proxy.port)),
            "-c",
            "4",
            CLOCHE_RESULTS__URL=broker_url,
            CLOCHE_TASKS__DEFAULT_QUEUE=queue,
        )
        wait_until(lambda: len(ended(ledger)) > 50, "it to work")
        proxy.cut()
        wait_until(lambda: len(ended(ledger)) == count, "all to end", 60)
        assert sum(ended(ledger).values()) <= count + 4
        assert not started.ended
        started.close()


class Letters:
    """``cloche dlq`` on this RabbitMQ."""

    def __init__(self, rabbit: RabbitProcess, queue: str, directory: Path) -> None:
        self.queue, self.directory = queue, directory
        self.environ = clean_environ(CLOCHE_BROKER__URL=rabbit.url)

    def run(self, *words: str) -> str:
        done = commands.cloche("dlq", *words, cwd=self.directory, env=self.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def here(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(self.run("list", "-Q", self.queue, "--json"))
        return found


@pytest.fixture
def letters(rabbit: RabbitProcess, queue: str, tmp_path: Path) -> Letters:
    return Letters(rabbit, queue, tmp_path)


def test_a_task_that_kills_its_worker_three_times_becomes_a_dead_letter(
    app: Celery, worker: Worker, queue: str, letters: Letters, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    app.send_task("tasks.probe.kill_self", (str(ledger),), task_id=queue, **IGNORED)
    for number in range(3):
        doomed = worker("-c", "1", "-P", "solo", "--name", f"doomed-{number}", ready=False)
        doomed.process.wait(30)
    heir = worker("-c", "1", "-P", "solo", "--name", "heir")
    app.send_task("tasks.probe.limits").get(timeout=20)
    assert lines(ledger) == ["start"] * 3
    assert not heir.ended
    (letter,) = wait_until(letters.here, "the dead letter")
    assert (letter["reason"], letter["task"]) == ("max-deliveries", "tasks.probe.kill_self")
    assert letter["task_id"] == queue
    assert queue in letters.run("show", str(letter["id"]))
    heir.process.terminate()  # what it has done is acknowledged
    heir.process.wait(30)
    assert letters.run("retry", str(letter["id"])).strip() == "1 put back"
    assert letters.here() == []
    # What a queue of this kind says of its length follows a moment later.
    wait_until(lambda: size(app, queue) > 0, "it to be back")
    assert size(app, queue) == 1


def test_what_cannot_be_run_becomes_a_dead_letter(
    app: Celery, rabbit: RabbitProcess, worker: Worker, queue: str, letters: Letters
) -> None:
    started = worker("-c", "1")
    app.send_task("tasks.nobody.knows", **IGNORED)
    with Connection(rabbit.url) as connection:
        producer = connection.Producer()
        for body, kind in ((b"\xff\xfe junk", "application/json"), (b"{}", "application/json")):
            producer.publish(body, routing_key=queue, content_type=kind, content_encoding="utf-8")
    wait_until(lambda: len(letters.here()) == 3, "three dead letters")
    assert {letter["reason"] for letter in letters.here()} == {"rejected"}
    assert app.send_task("tasks.probe.limits").get(timeout=20)
    assert not started.ended
    for letter in letters.here():
        assert letters.run("purge", str(letter["id"])).strip() == "1 deleted"
    assert letters.here() == []


def test_heartbeats_go_on_while_a_stopping_worker_waits(
    app: Celery, rabbit: RabbitProcess, worker: Worker, queue: str, tmp_path: Path
) -> None:
    """A server that hears nothing for two heartbeats gives the task to another worker."""
    pools = ("asyncio", "prefork", "threads")
    ledgers = {pool: tmp_path / f"{pool}.ledger" for pool in pools}

    def start(pool: str) -> LiveWorker:
        return worker(
            "-c", "2", "-P", pool, "--name", f"{pool}-{queue}", "-Q", f"{queue}-{pool}",
            PROBE_HEARTBEAT="4", ready=False,
        )  # fmt: skip

    stopping = [start(pool) for pool in pools]
    for pool, one in zip(pools, stopping, strict=True):
        one.wait_ready()
        ledger = str(ledgers[pool])
        app.send_task("tasks.probe.doze", (ledger, "x", 12), queue=f"{queue}-{pool}", **IGNORED)
    for pool, one in zip(pools, stopping, strict=True):
        wait_until(partial(lines, ledgers[pool]), "it to run")
        one.process.send_signal(signal.SIGTERM)
    for pool, one in zip(pools, stopping, strict=True):
        one.process.wait(40)
        assert lines(ledgers[pool]) == ["start x", "end x"], pool
        assert size(app, f"{queue}-{pool}") == 0, one.output
