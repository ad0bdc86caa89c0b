"""The same faults under the same load on stock ``redis://``: what they cost there.

Not a matrix to keep to: each shows that the fault strikes at all.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche.testing import BrokerProcess, wait_until
from tests.chaos.measure import CONCURRENCY, PATIENCE, TASKS, Cost, Load, number_of
from tests.integration.transport.harness import Bench, connections
from tests.integration.transport.proxy import Proxy

pytestmark = [pytest.mark.long, pytest.mark.timeout(300 + TASKS)]

#: Seconds without any effect after which nothing comes any more: what the matrix allows a
#: killed worker's tasks on our transport, whose leases are 2 s here.
QUIET = 2 + 5.0
#: Numbers of tasks beside the load.
BESIDE = 10**6

Report = Callable[[Cost], None]


@pytest.fixture
def scheme() -> str:
    return "redis"


@pytest.fixture
def bench(tmp_path: Path, scheme: str) -> Iterator[Bench]:
    with BrokerProcess(persistent=True) as broker, Bench(broker, scheme, tmp_path) as found:
        yield found


def under_way(bench: Bench, share: float = 0.2) -> None:
    wait_until(lambda: len(bench.ledger.count("end")) >= TASKS * share, "under way", PATIENCE)


def cost(fault: str, bench: Bench, load: Load) -> Cost:
    """Wait until nothing happens any more, and count."""
    load.join()
    size, since = 0, time.monotonic()

    def rests() -> bool:
        nonlocal size, since
        now = bench.ledger.path.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        return not bench.client.llen("celery") and time.monotonic() - since > QUIET

    wait_until(rests, "nothing happens any more", PATIENCE)
    missing = set(load.acknowledged) - set(bench.ledger.count("end"))
    held = {number_of(json.dumps(json.loads(raw)[0])) for raw in bench.client.hvals("unacked")}
    starts = bench.ledger.count("start")
    return Cost(
        f"{fault}, {bench.scheme}",
        load.tasks,
        gone=len(missing - held),
        held=len(missing & held),
        repeats=sum(count - 1 for count in starts.values()),
    )


def test_a_worker_killed_under_load(bench: Bench, costs: Report) -> None:
    doomed = bench.worker("prefork", CONCURRENCY)
    bench.worker("prefork", CONCURRENCY)
    load = Load(bench, seconds=0.05)
    under_way(bench)
    doomed.kill()
    found = cost("kill -9 worker under load", bench, load)
    costs(found)
    assert found.held > 0, "for an hour, kombu's visibility timeout"


def test_frozen_workers_killed_while_publishing(bench: Bench, costs: Report) -> None:
    bench.worker("prefork", CONCURRENCY)
    frozen = [bench.worker("solo", 1) for _ in range(2)]
    for worker in frozen:
        worker.signal(signal.SIGSTOP)
    load = Load(bench)
    under_way(bench)
    for worker in frozen:
        worker.kill()
    found = cost("SIGSTOP idle worker, publish, SIGKILL", bench, load)
    costs(found)
    assert found.gone > 0


def test_half_open_connections(bench: Bench, costs: Report) -> None:
    with Proxy(bench.broker.port) as proxy:
        bench.worker("threads", CONCURRENCY, url=f"redis://127.0.0.1:{proxy.port}/0")
        bench.worker("prefork", CONCURRENCY)
        load = Load(bench)
        under_way(bench)
        proxy.silence()
        found = cost("half-open connections", bench, load)
    costs(found)
    assert found.gone + found.held + found.repeats > 0


def test_all_connections_killed_again_and_again(bench: Bench, costs: Report) -> None:
    bench.worker("prefork", CONCURRENCY // 2)
    bench.worker("threads", CONCURRENCY // 2)
    load = Load(bench)
    under_way(bench, 0.05)
    for _ in range(8):
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])
        time.sleep(1)
    found = cost("CLIENT KILL of all connections, 8 times", bench, load)
    costs(found)
    assert found.gone + found.repeats > 0


def test_memory_of_the_server_full(bench: Bench, costs: Report) -> None:
    bench.client.config_set("maxmemory-policy", "noeviction")
    doomed = bench.worker("threads", CONCURRENCY)
    load = Load(bench)
    under_way(bench)
    bench.client.config_set("maxmemory", 1)
    try:
        time.sleep(3)
    finally:
        bench.client.config_set("maxmemory", 0)
    if not doomed.alive:  # an error of the server's ends it
        bench.worker("threads", CONCURRENCY)
    found = cost("maxmemory reached, then raised", bench, load)
    costs(found)
    assert found.gone + found.held + found.repeats > 0


@pytest.mark.parametrize("scheme", ["redis", "cloche+redis"])
def test_tasks_longer_than_any_timeout(bench: Bench, costs: Report) -> None:
    """On both: the matrix has no row for it."""
    if bench.scheme == "redis":
        bench.options = {"visibility_timeout": 2, "unacked_restore_interval": 1}
        bench.options["unacked_restore_throttle"] = 1
    bench.worker("threads", CONCURRENCY)
    longs = range(BESIDE, BESIDE + CONCURRENCY // 2)
    for number in longs:
        bench.send(number, seconds=6)
    load = Load(bench)
    bench.worker("threads", CONCURRENCY)
    wait_until(lambda: set(longs) <= set(bench.ledger.count("end")), "the long ones end", PATIENCE)
    found = cost("tasks of 6 s, time-out of 2 s", bench, load)
    costs(found)
    assert not found.gone
    assert bool(found.repeats) == (bench.scheme == "redis")
