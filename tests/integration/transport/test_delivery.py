"""Leases, fencing, delivery limit, dead letters, delay: one fault each."""

from __future__ import annotations

import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
import redis
from celery import Celery

from cloche.broker import delayed
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.keys import Keys
from cloche.testing import wait_until
from tests.integration.transport.harness import APP, Bench

#: The second in the long form only.
POOLS = ["prefork", pytest.param("threads", marks=pytest.mark.long)]


def letters(bench: Bench) -> DeadLetters:
    return DeadLetters(redis.Redis(port=bench.broker.port))


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_stopped_past_its_lease_drops_what_it_had_not_started(
    bench: Bench, pool: str
) -> None:
    numbers, running = 8, 2
    stopped = bench.worker(pool, running)
    for number in range(numbers):
        bench.send(number, seconds=1.5)
    wait_until(lambda: len(bench.ledger.count("start")) >= running, "two tasks run")
    stopped.signal(signal.SIGSTOP)
    bench.worker(pool, running)
    wait_until(lambda: bench.done(numbers), "the other worker ran them all", 30)
    stopped.signal(signal.SIGCONT)
    wait_until(lambda: "lease lost" in stopped.log, "the stopped worker noticed")
    wait_until(lambda: "fenced" in stopped.log, "late acknowledgements were fenced")
    answers = bench.app.control.inspect(timeout=2).stats().values()
    assert {stats["broker"]["hostname"] for stats in answers} == {"127.0.0.1"}
    leases = [stats["leases"] for stats in answers]
    assert sorted(one["lost"] for one in leases) == [0, 1]
    assert sum(one["fenced"] for one in leases) >= 1
    wait_until(lambda: bench.inflight() == 0, "nothing in flight")
    time.sleep(2)
    repeated = [n for n, count in bench.ledger.count("start").items() if count > 1]
    # Those that ran, and those its pool began in the instant before it noticed.
    assert len(repeated) <= 2 * running
    bench.send(100)
    wait_until(lambda: bench.ledger.count("end")[100] == 1, "work goes on")
    assert stopped.alive


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_can_ask_whether_its_lease_was_lost(bench: Bench, pool: str) -> None:
    bench.send(0, "ask_lease", seconds=1.5)
    stopped = bench.worker(pool, 1)
    wait_until(lambda: bench.ledger.count("before=False"), "it runs")
    stopped.signal(signal.SIGSTOP)
    bench.worker(pool, 1)
    wait_until(lambda: bench.ledger.count("after=False"), "it ran elsewhere")
    stopped.signal(signal.SIGCONT)
    wait_until(lambda: bench.ledger.count("after=True"), "the first one was told")


@pytest.mark.long
@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_kills_its_worker_three_times_is_a_dead_letter(bench: Bench, pool: str) -> None:
    bench.send(666, "kill_worker")
    for number in range(6):
        bench.send(number)  # innocent neighbours
    for _ in range(3):
        worker = bench.worker(pool, 1, ready=False, lease=1.0)
        assert worker.process.wait(timeout=60) < 0, "the task killed its worker"
    bench.worker(pool, 1, lease=1.0)
    wait_until(lambda: len(letters(bench)) == 1, "it is a dead letter")
    wait_until(lambda: bench.done(6), "the innocent ran")
    wait_until(lambda: bench.inflight() == 0, "nothing in flight, no mark left")
    assert bench.ledger.count("start")[666] == 3
    (letter,) = letters(bench).latest()
    assert letter.reason == "max-deliveries"
    assert letter.task == f"{APP}.kill_worker"
    assert len(letter.deaths) == 3
    assert all(death["consumer"] and death["at"] > 0 for death in letter.deaths)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff\xfe junk", "undecodable"),
        (b'{"body": "W10=", "headers": {}}', "undecodable"),
        (b"[1, 2]", "undecodable"),
        (json.dumps({"body": "x" * 20_000, "headers": {}, "properties": {}}).encode(), "oversized"),
    ],
)
def test_what_is_no_message_is_a_dead_letter(bench: Bench, raw: bytes, reason: str) -> None:
    worker = bench.worker("solo", 1, max_message_bytes=10_000)
    bench.client.lpush("celery", raw)
    wait_until(lambda: len(letters(bench)) == 1, "it is a dead letter")
    (letter,) = letters(bench).latest()
    assert (letter.reason, letter.raw, letter.queue) == (reason, raw, "celery")
    bench.send(1)
    wait_until(lambda: bench.ledger.count("end")[1] == 1, "work goes on")
    assert worker.alive
    wait_until(lambda: bench.inflight() == 0, "nothing in flight")


def test_an_unknown_task_is_a_dead_letter_and_retry_puts_it_back(bench: Bench) -> None:
    bench.worker("solo", 1)
    bench.app.send_task("nobody.knows", [1], task_id="lost-sheep")
    wait_until(
        lambda: [one.reason for one in letters(bench).latest()] == ["unknown-task"], "a dead letter"
    )
    (letter,) = letters(bench).latest()
    assert (letter.task, letter.task_id) == ("nobody.knows", "lost-sheep")
    assert "nobody.knows" in letter.detail
    assert letters(bench).latest(queue="another") == []
    bench.workers[0].stop()
    assert letters(bench).retry([letter.id]) == 1
    assert bench.client.llen("celery") == 1
    assert letters(bench).latest() == []
    bench.worker("solo", 1)
    wait_until(lambda: len(letters(bench)) == 1, "it came back")
    assert letters(bench).purge() == 1
    assert len(letters(bench)) == 0


def test_a_body_that_cannot_be_decoded_is_a_dead_letter(bench: Bench) -> None:
    bench.worker("solo", 1)
    with bench.app.connection() as connection:
        producer = connection.Producer()
        producer.publish(
            b"{broken",
            routing_key="celery",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": f"{APP}.record", "id": "1"},
        )
    wait_until(lambda: len(letters(bench)) == 1, "it is a dead letter")
    (letter,) = letters(bench).latest()
    assert letter.reason == "undecodable"


def test_a_delayed_task_waits_on_the_server_and_runs_when_due(bench: Bench) -> None:
    bench.worker("solo", 1)
    sent = time.time()
    bench.send(0, countdown=2)
    bench.send(1, countdown=3600, task_id="to-revoke")
    assert bench.client.llen("celery") == 0
    assert bench.client.zcard("cloche:delayed:celery") == 2
    assert bench.inflight() == 0
    wait_until(lambda: bench.done(1), "the due task ran")
    started = float(bench.ledger.path.read_text().split()[3])
    assert started - sent > 1.8
    assert delayed.revoke(bench.client, Keys(), "to-revoke") == 1
    assert not bench.client.keys("cloche:delayed*")


def test_a_stock_producers_delayed_task_is_put_aside_on_receipt(bench: Bench) -> None:
    worker = bench.worker("solo", 1)  # before the countdown begins: a start may take long
    stock = Celery(broker=f"redis://127.0.0.1:{bench.broker.port}/0")
    worker.signal(signal.SIGSTOP)
    stock.send_task(f"{APP}.record", [0], countdown=4)
    stock.send_task(f"{APP}.record", [1], eta=datetime.now(UTC) - timedelta(hours=1))
    stock.close()
    assert bench.client.llen("celery") == 2
    worker.signal(signal.SIGCONT)
    wait_until(lambda: bench.ledger.count("end")[1] == 1, "the overdue one ran at once")
    wait_until(lambda: bench.client.zcard("cloche:delayed:celery") == 1, "the other waits")
    wait_until(lambda: bench.inflight() == 0, "nothing in flight")
    wait_until(lambda: bench.done(2), "it ran when due")


def test_a_redelivered_task_knows(bench: Bench) -> None:
    doomed = bench.worker("prefork", 1)
    bench.send(0, seconds=30)
    wait_until(lambda: bench.ledger.count("start"), "it runs")
    bench.send(1, "tell_redelivered")
    wait_until(lambda: bench.inflight() == 2, "both fetched")
    doomed.kill()
    bench.worker("threads", 2)
    wait_until(lambda: bench.ledger.count("redelivered=True")[1] == 1, "told so")


@pytest.mark.parametrize("producer", ["redis", "cloche+redis"])
@pytest.mark.parametrize("consumer", ["redis", "cloche+redis"])
def test_stock_and_cloche_share_queues(bench: Bench, producer: str, consumer: str) -> None:
    address = f"://127.0.0.1:{bench.broker.port}/0"
    bench.worker("solo", 1, url=consumer + address)
    app = Celery(broker=producer + address)
    for number in range(20):
        app.send_task(f"{APP}.record", [number], priority=number % 10)
    app.close()
    wait_until(lambda: bench.done(20), "all ran")
    assert max(bench.ledger.count("start").values()) == 1


@pytest.mark.long
def test_remote_control_works(bench: Bench) -> None:
    worker = bench.worker("threads", 2)
    assert bench.app.control.ping(timeout=3) == [{f"{worker.log_path.stem}@test": {"ok": "pong"}}]
    bench.app.control.add_consumer("late", reply=True, timeout=3)
    bench.send(3, queue="late")
    wait_until(lambda: bench.ledger.count("end")[3] == 1, "the new queue is consumed")
    bench.app.control.cancel_consumer("late", reply=True, timeout=3)
    bench.send(4, queue="late")
    bench.send(5)
    wait_until(lambda: bench.ledger.count("end")[5] == 1, "the other queue is consumed")
    time.sleep(0.5)
    assert bench.client.llen("late") == 1
    assert not [key for key in bench.client.keys("cloche:bell:*") if "pidbox" in key]
