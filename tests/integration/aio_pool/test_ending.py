"""Stops, outages, size and renewal: nothing is lost, nothing acknowledged runs again."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from cloche.testing import BrokerProcess, wait_until
from tests.integration.aio_pool.harness import Worker, worker

pytestmark = pytest.mark.timeout(120)


def _words(found: Worker, word: str) -> Counter[str]:
    return Counter(line[0] for line in found.notes(word))


def _left(found: Worker, url: str) -> tuple[int, int]:
    """Messages in the queue, and in anybody's hands (of this queue; stock Redis transport)."""
    with redis.Redis.from_url(url) as client:
        held = [value for value in client.hvals("unacked") if found.name.encode() in value]
        return int(client.llen(found.name)), len(held)


@pytest.fixture
def narrow(tmp_path: Path, broker_url: str) -> Iterator[Worker]:
    with worker(
        tmp_path, broker_url, "narrow", concurrency=1, worker_prefetch_multiplier=8
    ) as found:
        yield found


def test_revoked_jobs_that_wait_in_the_pool_never_start(narrow: Worker) -> None:
    first = narrow.send("tidy", "first", 60)
    wait_until(lambda: ["first"] in narrow.notes("began"), "its start")
    quiet, loud = narrow.send("tidy", "quiet", 0), narrow.send("tidy", "loud", 0)
    last = narrow.send("add", 1, 1)
    wait_until(lambda: (narrow.ask("stats") or {})["pool"]["waiting"] == 3, "them in the pool")
    quiet.revoke()
    loud.revoke(terminate=True)
    wait_until(lambda: loud.state == "REVOKED", "REVOKED")
    first.revoke(terminate=True)
    assert last.get(timeout=20) == 2
    assert [first.state, quiet.state, loud.state] == ["REVOKED"] * 3
    assert narrow.notes("began") == [["first"]]

    # The same worker, a little wider.
    narrow.app.control.pool_grow(3, destination=[f"{narrow.name}@test"], reply=True, timeout=10)
    four = [narrow.send("wait", 2) for _ in range(6)]
    wait_until(lambda: narrow.ask("stats")["pool"]["running"] == 4, "four at once")
    assert narrow.ask("stats")["pool"]["max-concurrency"] == 4
    narrow.app.control.pool_shrink(2, destination=[f"{narrow.name}@test"], reply=True, timeout=10)
    assert [one.get(timeout=20) for one in four] == [2] * 6
    assert narrow.ask("stats")["pool"]["max-concurrency"] == 2


def test_a_warm_stop_waits_acknowledges_and_keeps_its_connections_alive(
    tmp_path: Path, broker_url: str
) -> None:
    with worker(tmp_path, broker_url, "warm") as found:
        results = [found.send("late", str(number), 3) for number in range(20)]
        wait_until(lambda: len(found.notes("began")) == 20, "all running")
        found.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in found.log, "its farewell")
        before = len(found.notes("pulse"))
        assert found.process.wait(30) == 0
        assert len(found.notes("pulse")) >= before + 3
        assert set(_words(found, "ended").values()) == {1}
        assert [one.get(timeout=5) for one in results] == [str(number) for number in range(20)]
        assert _left(found, broker_url) == (0, 0)


@pytest.mark.parametrize("soft_shutdown", [0.0, pytest.param(2.0, marks=pytest.mark.long)])
def test_a_cold_stop_gives_back_what_runs_and_only_that(
    soft_shutdown: float, tmp_path: Path, broker_url: str
) -> None:
    name = f"cold-{soft_shutdown:g}"
    with worker(tmp_path, broker_url, name, worker_soft_shutdown_timeout=soft_shutdown) as found:
        for number in range(5):
            found.send("late", f"quick-{number}", 0.5)
        if not soft_shutdown:
            wait_until(lambda: len(found.notes("ended")) == 5, "the quick ones")
            wait_until(lambda: _left(found, broker_url)[1] == 0, "their acks")
        results = [found.send("late", f"slow-{number}", 5) for number in range(5)]
        wait_until(lambda: len(found.notes("began")) == 10, "all running")
        found.process.send_signal(signal.SIGQUIT)
        found.process.wait(40)
        wait_until(lambda: _left(found, broker_url)[0] == 5, "the slow ones back")
        ended = _words(found, "ended")
        assert ended == {f"quick-{number}": 1 for number in range(5)}
        found.start()
        found.wait_ready(times=2)
        assert [one.get(timeout=40) for one in results] == [f"slow-{n}" for n in range(5)]
        assert set(_words(found, "ended").values()) == {1}
        wait_until(lambda: _left(found, broker_url) == (0, 0), "the last acks")


@pytest.mark.parametrize("scheme", [pytest.param("redis", marks=pytest.mark.long), "cloche+redis"])
def test_a_broker_killed_under_running_tasks_loses_none(
    scheme: str, tmp_path: Path, broker: BrokerProcess
) -> None:
    url = broker.url.replace("redis", scheme, 1)
    options = {"lease": 2.0} if "cloche" in scheme else {"visibility_timeout": 10}
    with worker(tmp_path, url, "outage", concurrency=10, broker_transport_options=options) as found:
        early = [found.send("late", f"early-{number}", 0.1) for number in range(5)]
        assert [one.get(timeout=20) for one in early] == [f"early-{n}" for n in range(5)]
        time.sleep(1.2)  # appendfsync everysec
        for number in range(20):
            found.send("late", f"held-{number}", 2)
        wait_until(lambda: len(found.notes("began")) == 15, "ten running")
        time.sleep(1.2)
        broker.kill()
        time.sleep(1)
        broker.start()
        wait_until(lambda: len(_words(found, "ended")) == 25, "all of them", 60)
        words = _words(found, "ended")
        assert all(words[f"early-{number}"] == 1 for number in range(5))
        found.send("late", "after", 0)
        wait_until(lambda: ["after"] in found.notes("ended"), "a new one", 40)


def test_the_workers_own_limits_hold_where_task_and_call_have_none(
    tmp_path: Path, broker_url: str
) -> None:
    limits = {"task_soft_time_limit": 1, "task_time_limit": 3}
    with worker(tmp_path, broker_url, "limited", **limits) as found:
        general = found.send("wait", 30)
        stubborn = found.send("stubborn", "worker")
        assert found.send("wait", 1.5, soft_time_limit=20).get(timeout=20) == 1.5
        with pytest.raises(SoftTimeLimitExceeded):
            general.get(timeout=20)
        with pytest.raises(TimeLimitExceeded):
            stubborn.get(timeout=20)


def test_the_autoscaler_widens_and_narrows_the_pool(tmp_path: Path, broker_url: str) -> None:
    with worker(
        tmp_path, broker_url, "scaled", arguments=("--autoscale=6,1",),
        worker_prefetch_multiplier=6, environ={"AUTOSCALE_KEEPALIVE": "1"},
    ) as found:  # fmt: skip
        results = [found.send("wait", 3) for _ in range(6)]
        wait_until(lambda: found.ask("stats")["pool"]["running"] == 6, "six at once")
        assert [one.get(timeout=30) for one in results] == [3] * 6
        wait_until(lambda: found.ask("stats")["pool"]["max-concurrency"] == 1, "one again")


@pytest.mark.parametrize("why", ["max_tasks_per_child", "max_memory_per_child"])
def test_a_worker_renews_itself_in_place_without_losing_a_task(
    why: str, tmp_path: Path, broker_url: str
) -> None:
    limits = {f"worker_{why}": 5 if "tasks" in why else 1000}
    conf = {"worker_prefetch_multiplier": 2, **limits}
    with worker(tmp_path, broker_url, f"renewed-{why}", concurrency=2, **conf) as found:
        results = [found.send("late", str(number), 0.05) for number in range(8)]
        assert [one.get(timeout=60) for one in results] == [str(n) for n in range(8)]
        found.wait_ready(times=2)
        assert set(_words(found, "ended").values()) == {1}
        assert found.send("census").get(timeout=40)["pid"] == found.process.pid


@pytest.mark.long
def test_a_plain_task_that_hangs_does_not_keep_the_worker_from_ending(
    tmp_path: Path, broker_url: str
) -> None:
    with worker(tmp_path, broker_url, "hanging", task_acks_late=True) as found:
        found.send("plain", 90)
        found.send("late", "waiting", 90)
        wait_until(lambda: ["waiting"] in found.notes("began"), "the start")
        wait_until(lambda: found.ask("stats")["pool"]["sync-running"] == 1, "both")
        found.process.send_signal(signal.SIGQUIT)
        found.process.wait(40)
        wait_until(lambda: _left(found, broker_url)[0] == 2, "both given back")
