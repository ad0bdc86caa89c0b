"""Failover by Sentinel, with the master killed while tasks run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError

from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport import servers
from tests.integration.transport.harness import Bench
from tests.integration.transport.sentinels import MASTER, SentinelGroup

pytestmark = pytest.mark.long


class Producer(threading.Thread):
    """Sends numbered tasks until told to stop; knows which of them a replica had for sure."""

    def __init__(self, bench: Bench, group: SentinelGroup) -> None:
        super().__init__(daemon=True)
        self.bench = bench
        self.group = group
        self.sent = 0
        self.replicated: set[int] = set()
        self.refused = 0
        self.failover = threading.Event()
        self.done = threading.Event()

    def run(self) -> None:
        master = self.group.servers[0]
        while not self.done.is_set():
            number, self.sent = self.sent, self.sent + 1
            master_lives = not self.failover.is_set()
            try:
                self.bench.send(number, seconds=0.005)
            except (OperationalError, redis.RedisError):
                self.refused += 1
                time.sleep(0.1)
            else:
                if not master_lives or confirmed(master):
                    self.replicated.add(number)


def confirmed(master: BrokerProcess) -> bool:
    """Whether the replica has all that was written so far.

    WAIT speaks of the asking connection's own writes: so one is made, after the others.
    """
    try:
        with master.client() as client:
            client.set("marker", "1")
            return int(client.wait(1, 1000)) == 1
    except redis.RedisError:
        return False


@pytest.fixture(params=servers.PROGRAMS)
def group(request: pytest.FixtureRequest) -> SentinelGroup:
    return SentinelGroup(servers.program(request.param))


@pytest.mark.timeout(240)
def test_a_failover_under_load_loses_nothing_replicated_and_the_worker_goes_on(
    group: SentinelGroup, tmp_path: Path
) -> None:
    with group, Bench(group.servers[0], "cloche+redis", tmp_path) as bench:
        bench.url = group.url
        bench.options |= {"master_name": MASTER, "lease": 5.0}
        worker = bench.worker("threads", 4)
        bench.send(1_000_000, countdown=12)
        producer = Producer(bench, group)
        producer.start()
        wait_until(lambda: len(bench.ledger.count("end")) >= 150, "the load runs", 30)
        old = group.master_port()
        group.servers[0].kill()
        killed = time.monotonic()
        producer.failover.set()
        wait_until(lambda: group.master_port() not in (0, old), "another master", 20)
        at = len(bench.ledger.words())
        wait_until(lambda: len(bench.ledger.words()) > at + 50, "the worker goes on", 20)
        resumed = time.monotonic() - killed
        producer.done.set()
        producer.join(timeout=30)
        assert not producer.is_alive()
        ran = bench.ledger.count("end")
        wait_until(
            lambda: not producer.replicated - set(bench.ledger.count("end")),
            f"all {len(producer.replicated)} ran; {len(ran)} did",
            30,
        )
        wait_until(lambda: bench.ledger.count("end")[1_000_000] == 1, "the delayed one ran", 15)
        assert worker.alive
        assert resumed < 30
        ran = bench.ledger.count("end")
        print(
            f"sent {producer.sent}, replicated {len(producer.replicated)}, refused "
            f"{producer.refused}, ran {len(ran)}, twice {sum(n > 1 for n in ran.values())}, "
            f"resumed after {resumed:.1f} s"
        )
        assert bench.worker("solo", 1).alive, "a new worker finds the new master"


@pytest.mark.parametrize("name", servers.PROGRAMS)
def test_results_come_back_through_sentinel(name: str, tmp_path: Path) -> None:
    with (
        SentinelGroup(servers.program(name)) as group,
        Bench(group.servers[0], "cloche+redis", tmp_path) as bench,
    ):
        bench.url = group.url
        bench.options |= {"master_name": MASTER}
        conf = {
            "imports": ["tests.integration.transport.servers_app"],
            "result_backend": group.url,
            "result_backend_transport_options": {"master_name": MASTER},
        }
        bench.app.conf.update(**{**conf, "imports": []})
        worker = bench.worker("threads", 1, conf=conf)
        result = bench.app.send_task("tests.integration.transport.servers_app.double", [21])
        assert result.get(timeout=10) == 42
        names = [name for one in bench.app.control.ping(timeout=3) for name in one]
        assert names == [f"{worker.log_path.stem}@test"]
