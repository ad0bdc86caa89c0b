"""Rows 9 to 13 and 17 to 19: the server dies, hangs, flaps, fills up, changes its role."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from cloche.broker.connection.commands import send
from cloche.broker.embedded.server import bundled_server
from cloche.testing import BrokerProcess, wait_until
from tests.chaos.conftest import Report
from tests.chaos.measure import CONCURRENCY, TASKS, WHOLE, Allowed, Load, Row
from tests.integration.transport.harness import Bench, Worker, connections
from tests.integration.transport.proxy import Proxy

pytestmark = pytest.mark.timeout(400 + TASKS)

HALF = CONCURRENCY // 2


def workers(bench: Bench) -> list[Worker]:
    """One of each kind; together they run CONCURRENCY tasks."""
    return [bench.worker("prefork", HALF), bench.worker("threads", HALF)]


def test_row_9_the_broker_killed_and_back(bench: Bench, report: Report) -> None:
    both = workers(bench)
    row = Row(9, "broker kill -9, back after 2 s, fsync always", bench, Load(bench))
    row.under_way()
    row.begin()
    bench.broker.kill()
    time.sleep(2)
    bench.broker.start()
    row.end()
    report(row.finish(Allowed(CONCURRENCY, 10, 40)))
    assert all(worker.alive for worker in both)


@pytest.mark.long
def test_row_10_the_same_with_fsync_everysec(tmp_path: Path, report: Report) -> None:
    config = {"appendfsync": "everysec"}
    with (
        BrokerProcess(persistent=True, config=config) as broker,
        Bench(broker, "cloche+redis", tmp_path) as bench,
    ):
        workers(bench)
        load = Load(bench)
        row = Row(10, "broker kill -9, back after 2 s, fsync everysec", bench, load)
        row.under_way()
        row.begin()
        broker.kill()
        time.sleep(2)
        broker.start()
        row.end()
        load.join()
        # What the server may forget, by its documentation: decision 0003.
        last = {n for n, at in load.acknowledged.items() if row.began - 2 < at < row.began}
        report(row.finish(Allowed(CONCURRENCY, 10, 40), lost=last))


@pytest.mark.long
def test_row_11_a_long_outage_and_a_publisher_with_a_spool(
    bench: Bench, report: Report, tmp_path: Path
) -> None:
    both = workers(bench)
    bench.options = bench.options | {
        "publish_on_outage": "spool",
        "spool_directory": str(tmp_path / "spool"),
    }
    load = Load(bench)
    row = Row(11, "broker down for 15 leases, publisher with spool", bench, load)
    row.under_way(0.1)
    row.begin()
    bench.broker.kill()
    load.join()  # nothing is refused meanwhile
    time.sleep(max(0.0, row.began + (30 if WHOLE else 5) - time.time()))
    bench.broker.start()
    row.end()
    report(row.finish(Allowed(CONCURRENCY, 15, 60)))
    assert all(worker.alive for worker in both)


@pytest.mark.long
def test_row_12_a_flapping_broker(bench: Bench, report: Report) -> None:
    both = workers(bench)
    flaps = 60 if WHOLE else 6
    row = Row(12, f"broker flapping, 1 s x {flaps}", bench, Load(bench))
    row.under_way(0.05)
    row.begin()
    for _ in range(flaps):
        bench.broker.kill()
        time.sleep(0.5)
        bench.broker.start()
        time.sleep(0.5)
    row.end()
    report(row.finish(Allowed(CONCURRENCY, 15, 150)))
    assert all(worker.alive for worker in both)


@pytest.mark.long
def test_row_13_the_broker_stopped_and_continued(bench: Bench, report: Report) -> None:
    workers(bench)
    seconds = 60 if WHOLE else 8
    row = Row(13, f"SIGSTOP broker {seconds} s", bench, Load(bench))
    row.under_way()
    row.begin()
    bench.broker.freeze()
    time.sleep(seconds)
    bench.broker.thaw()
    row.end()
    report(row.finish(Allowed(CONCURRENCY, 15, 30)))


@pytest.mark.long
def test_row_17_memory_full_and_freed(bench: Bench, report: Report) -> None:
    bench.client.config_set("maxmemory-policy", "noeviction")
    workers(bench)
    row = Row(17, "maxmemory reached, then raised", bench, Load(bench))
    row.under_way()
    row.begin()
    bench.client.config_set("maxmemory", 1)
    time.sleep(3)
    bench.client.config_set("maxmemory", 0)
    row.end()
    report(row.finish(Allowed(0, 10, 30)))


@contextlib.contextmanager
def small_disk(tmp_path: Path) -> Iterator[tuple[BrokerProcess, Path]]:
    """A server whose data directory is a file system of 8 MB; (server, that directory as we see
    it). The mount is private to the server's process and ends with it.
    """
    script = tmp_path / "server"
    user = "" if os.geteuid() == 0 else "--user --map-root-user"
    script.write_text(
        "#!/bin/sh\n"
        f'mkdir -p data && exec unshare {user} --mount sh -c "mount -t tmpfs -o size=8m tmpfs data'
        f' && exec {bundled_server()} $1"\n'
    )
    script.chmod(0o755)
    config: dict[str, str | int] = {"appendfsync": "everysec", "auto-aof-rewrite-percentage": 0}
    server = BrokerProcess(persistent=True, config=config, program=script)
    server.config["dir"] = str(server.directory / "data")
    with server:
        yield server, Path(f"/proc/{server.pid}/root{server.directory}/data")


def fill(path: Path) -> None:
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.mark.long
def test_row_18_disk_full_and_freed(tmp_path: Path, report: Report) -> None:
    with (
        small_disk(tmp_path) as (broker, disk),
        Bench(broker, "cloche+redis", tmp_path) as bench,
    ):
        both = workers(bench)
        row = Row(18, "disk of the append-only file full, then freed", bench, Load(bench))
        row.under_way()
        row.begin()
        fill(disk / "filler")
        wait_until(lambda: any("MISCONF" in w.log for w in both), "the workers noticed")
        time.sleep(3)
        (disk / "filler").unlink()
        row.end()
        report(row.finish(Allowed(CONCURRENCY, 15, 30)))
        assert all(worker.alive for worker in both)


def test_row_19_the_primary_becomes_a_replica(tmp_path: Path, report: Report) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(BrokerProcess(config={"repl-diskless-sync-delay": 0}))
        follows: dict[str, str | int] = {
            "replicaof": f"127.0.0.1 {first.port}",
            "repl-diskless-sync-delay": 0,
        }
        second = stack.enter_context(BrokerProcess(config=follows))
        proxy = stack.enter_context(Proxy(first.port))
        bench = stack.enter_context(Bench(first, "cloche+redis", tmp_path))
        bench.url = f"cloche+redis://127.0.0.1:{proxy.port}/0"
        with first.client() as client:
            wait_until(lambda: client.info("replication")["connected_slaves"] == 1, "it follows")
            wait_until(lambda: client.wait(1, 1000) == 1, "it is in step")
            both = workers(bench)
            row = Row(19, "READONLY: the primary becomes a replica", bench, Load(bench))
            row.under_way()
            row.begin()
            send(client, "FAILOVER")
            wait_until(lambda: client.info("replication")["role"] == "slave", "it changed sides")
        time.sleep(3)  # everybody meets READONLY
        proxy.lead_to(second.port)
        proxy.cut()
        row.end()
        bench.client.close()
        bench.client = stack.enter_context(contextlib.closing(second.client()))
        report(row.finish(Allowed(CONCURRENCY, 20, 30)))
        assert all("replica" in worker.log.lower() for worker in both)


@pytest.mark.long
def test_what_a_worker_holds_open_does_not_grow_with_the_faults(bench: Bench) -> None:
    worker = bench.worker("prefork", 2)
    process = psutil.Process(worker.process.pid)
    sizes = []
    for number in range(8):
        for one in connections(bench.client):
            bench.client.client_kill_filter(_id=one["id"])
        if number % 4 == 3:
            bench.broker.kill()
            bench.broker.start()
        bench.send(number)
        wait_until(partial(bench.done, number + 1), "work goes on")
        wait_until(lambda: len(connections(bench.client)) >= 3, "all are connected")
        sizes.append((process.num_fds(), process.memory_info().rss))
    files, memory = zip(*sizes, strict=True)
    assert max(files[4:]) <= max(files[:4]) + 1, sizes
    assert memory[-1] - memory[2] < 5e6, sizes
