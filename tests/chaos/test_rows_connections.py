"""Rows 14 to 16 and 20: connections fall silent or are cut; messages are none."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import redis
from celery import Celery

from cloche.broker.dead_letters import DeadLetters
from cloche.testing import wait_until
from tests.chaos.conftest import Report
from tests.chaos.measure import (
    CONCURRENCY,
    TASKS,
    WHOLE,
    Allowed,
    Load,
    Measured,
    Row,
    number_of,
)
from tests.integration.transport.harness import APP, Bench, connections
from tests.integration.transport.proxy import Proxy

pytestmark = pytest.mark.timeout(300 + TASKS)


@pytest.mark.long
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_row_14_half_open_connections(bench: Bench, report: Report, pool: str) -> None:
    with Proxy(bench.broker.port) as proxy:
        bench.worker(pool, CONCURRENCY, url=f"cloche+redis://127.0.0.1:{proxy.port}/0", lease=30)
        row = Row(14, f"half-open connections, {pool}", bench, Load(bench))
        row.under_way()
        row.begin()
        proxy.silence()
        report(row.finish(Allowed(CONCURRENCY, 20, 30), seconds=row.longest_gap))


@pytest.mark.parametrize("outage", ["raise", "spool"])
def test_row_15_a_publish_cut_before_its_reply(
    bench: Bench,
    report: Report,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    outage: str,
) -> None:
    every = 50
    asked = 0

    def publishes(data: bytes) -> bool:
        nonlocal asked
        found = re.search(rb"EVALSHA.*\r\ncelery\r\n", data, re.DOTALL)
        asked += bool(found)
        return bool(found) and asked % every == 0

    longest = 0.0
    with Proxy(bench.broker.port) as proxy, caplog.at_level(logging.INFO):
        app = Celery(broker=f"cloche+redis://127.0.0.1:{proxy.port}/0", set_as_current=False)
        app.conf.broker_transport_options = {
            "publish_on_outage": outage,
            "spool_directory": str(tmp_path / "spool"),
        }
        app.send_task("demo.first", queue="elsewhere")
        proxy.cut_replies(publishes)
        for number in range(TASKS):
            began = time.monotonic()
            app.send_task(f"{APP}.record", [number])
            longest = max(longest, time.monotonic() - began)
        if outage == "spool":
            (spool,) = (tmp_path / "spool").glob("*.spool")
            wait_until(lambda: not spool.read_bytes(), "replayed")
        app.close()
    cuts = asked // every
    found = Counter(number_of(str(text)) for text in bench.client.lrange("celery", 0, -1))
    assert set(found) == set(range(TASKS))
    assert max(found.values()) <= (2 if outage == "raise" else 1), "at most one more of each"
    lines = len(caplog.text.splitlines())
    report(
        Measured(
            row=15,
            fault=f"{cuts} publishes cut before their reply, {outage}",
            tasks=TASKS,
            lost=0,
            duplicates=sum(found.values()) - TASKS,
            late=0,
            seconds=longest,
            lines=lines,
            allowed=Allowed(cuts if outage == "raise" else 0, 5, 10 * cuts),
        )
    )


def test_row_16_all_connections_killed_again_and_again(bench: Bench, report: Report) -> None:
    bench.worker("prefork", CONCURRENCY // 2)
    bench.worker("threads", CONCURRENCY // 2)
    kills = 8 if WHOLE else 4
    row = Row(16, f"CLIENT KILL of all connections, {kills} times", bench, Load(bench))
    row.under_way(0.05)
    row.begin()
    for _ in range(kills):
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])
        row.end()
        time.sleep(1)
    report(row.finish(Allowed(0, 5, 5 * kills), seconds=row.longest_gap))


def test_row_20_what_is_no_message(bench: Bench, report: Report) -> None:
    worker = bench.worker("threads", CONCURRENCY, max_message_bytes=10_000_000)
    row = Row(20, "junk, no properties, 10 MB body, unknown task: 5 each", bench, Load(bench))
    row.under_way()
    row.begin()
    each = 5
    big = json.dumps({"body": "x" * 10_000_001, "headers": {}, "properties": {}})
    for number in range(each):
        bench.client.lpush("celery", f"junk \N{BELL} {number}")
        bench.client.lpush("celery", json.dumps({"body": "W10=", "headers": {"id": str(number)}}))
        bench.client.lpush("celery", big)
        bench.app.send_task("nobody.knows", [number])
    with redis.Redis(port=bench.broker.port) as client:
        letters = DeadLetters(client)
        wait_until(lambda: len(letters) == 4 * each, "all are dead letters", 60)
        # Celery's worker tells its own reasons a moment after it rejected.
        explained = lambda: all(one.reason != "rejected" for one in letters.latest())  # noqa: E731
        wait_until(explained, "and the reason of each is told")
        reasons = Counter(letter.reason for letter in letters.latest())
    report(row.finish(Allowed(0, 5, 3 * 4 * each)))
    assert reasons == {"undecodable": 2 * each, "oversized": each, "unknown-task": each}
    assert worker.alive
