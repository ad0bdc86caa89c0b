"""The same small suite on every server, over every kind of connection.

One worker a combination; the tests of a combination share it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery, states

from cloche.broker.dead_letters import DeadLetters
from cloche.broker.keys import Keys
from cloche.testing import wait_until
from tests.integration.transport import servers
from tests.integration.transport.harness import Bench, Worker
from tests.integration.transport.servers import COMBINATIONS, CONNECTIONS, Reached

TASKS = "tests.integration.transport.servers_app"
CONF: dict[str, Any] = {"imports": [TASKS]}


@dataclass
class Stand:
    """A worker at work on one server over one kind of connection, and a producer's app."""

    bench: Bench
    reached: Reached
    worker: Worker
    conf: dict[str, Any]

    @property
    def app(self) -> Celery:
        return self.bench.app

    @property
    def keys(self) -> Keys:
        return Keys(self.reached.options.get("global_keyprefix", ""))


def _serve(bench: Bench, reached: Reached) -> Stand:
    bench.url = reached.url
    bench.options |= reached.options
    conf = {
        **CONF,
        "result_backend": reached.results,
        "result_backend_transport_options": reached.options,
    }
    bench.app.conf.update(**{**conf, "imports": []})
    for number, priority in enumerate((9, 6, 3, 0)):
        bench.send(number, priority=priority)
    bench.send(50, countdown=2.5)
    bench.send(51, countdown=3600, task_id="delayed-for-long")
    bench.send(52, countdown=3600, task_id="to-revoke")
    return Stand(bench, reached, bench.worker("threads", 1, conf=conf), conf)


#: In the short form too.
SHORT = [("valkey-9", "tcp"), ("redis-7", "acl-prefix"), ("redis-7", "tls")]
PARAMS = [
    pytest.param(one, marks=() if one in SHORT else pytest.mark.long, id="-".join(one))
    for one in COMBINATIONS
]


@pytest.fixture(scope="module", params=PARAMS)
def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    server, connection = request.param
    with (
        CONNECTIONS[connection](servers.program(server)) as reached,
        Bench(reached.server, "cloche+redis", tmp_path_factory.mktemp("stand")) as bench,
    ):
        yield _serve(bench, reached)


def test_urgent_tasks_run_before_others_that_were_sent_first(stand: Stand) -> None:
    ended = stand.bench.ledger.count
    wait_until(lambda: set(range(4)) <= set(ended("end")), "all ran")
    started = [number for word, number in stand.bench.ledger.words() if word == "start"]
    assert [number for number in started if number < 4] == [3, 2, 1, 0]


def test_a_delayed_task_runs_when_due_and_a_revoked_one_never(stand: Stand) -> None:
    with stand.app.connection() as connection, connection.channel() as channel:
        texts = stand.keys.delayed_messages("celery")
        assert channel.own.hexists(texts, "to-revoke")
        stand.app.control.revoke("to-revoke")
        wait_until(lambda: not channel.own.hexists(texts, "to-revoke"), "it is off the server")
        wait_until(lambda: stand.bench.ledger.count("end")[50] == 1, "the due one ran", 10)
        assert channel.own.zcard(stand.keys.delayed("celery")) == 1
    assert not stand.bench.ledger.count("start")[52]
    assert stand.app.AsyncResult("to-revoke").state == states.REVOKED


def test_a_retry_runs_after_its_countdown(stand: Stand) -> None:
    stand.app.send_task(f"{TASKS}.again", [60])
    wait_until(lambda: stand.bench.ledger.count("try-1")[60] == 1, "the second try", 10)


def test_results_and_remote_control_come_back(stand: Stand) -> None:
    result = stand.app.send_task(f"{TASKS}.double", [21])
    assert result.get(timeout=10) == 42
    name = f"{stand.worker.log_path.stem}@test"
    assert stand.app.control.inspect(timeout=5, limit=1).ping() == {name: {"ok": "pong"}}


def test_an_unknown_task_is_a_dead_letter_that_can_be_retried(stand: Stand) -> None:
    stand.app.send_task("nobody.knows", [1], task_id="stray")
    with stand.app.connection() as connection, connection.channel() as channel:
        letters = DeadLetters(channel.own, stand.keys)

        def found() -> list[tuple[str, str | None]]:
            return [(one.reason, one.task_id) for one in letters.latest()]

        wait_until(lambda: found() == [("unknown-task", "stray")], "a dead letter")
        letters.retry([letters.latest()[0].id])
        wait_until(lambda: found() == [("unknown-task", "stray")], "it came back")
        assert letters.purge() == 1


def test_what_a_killed_worker_held_runs_elsewhere_within_lease_and_five_seconds(
    stand: Stand,
) -> None:
    bench = stand.bench
    bench.send(70, seconds=30)
    bench.send(71)
    wait_until(lambda: bench.ledger.count("start")[70] == 1, "the long one runs")
    successor = bench.worker("threads", 2, conf=stand.conf)
    stand.worker.signal(signal.SIGKILL)
    killed = time.monotonic()
    lease = bench.options["lease"]
    wait_until(lambda: bench.ledger.count("start")[70] == 2, "recovered", lease + 5)
    wait_until(lambda: bench.ledger.count("end")[71] == 1, "its neighbour too", 10)
    assert time.monotonic() - killed < lease + 15
    assert "paused" not in successor.log, "no error on the way"
