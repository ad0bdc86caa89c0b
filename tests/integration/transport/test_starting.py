"""A worker that starts while its server takes no writes waits, and says so in a few lines."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from cloche.broker.connection.commands import send
from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport.harness import Bench


def fill(bench: Bench) -> None:
    bench.client.config_set("maxmemory-policy", "noeviction")
    bench.client.config_set("maxmemory", 1)


def empty(bench: Bench) -> None:
    bench.client.config_set("maxmemory", 0)


def want_replicas(bench: Bench) -> None:
    bench.client.config_set("min-replicas-to-write", 1)


def want_none(bench: Bench) -> None:
    bench.client.config_set("min-replicas-to-write", 0)


def fail_to_save(bench: Bench) -> None:
    """A snapshot into a directory that is none: MISCONF until one succeeds."""
    bench.client.config_set("stop-writes-on-bgsave-error", "yes")
    bench.client.config_set("save", "3600 1")
    send(bench.client, "CONFIG", "SET", "rdbcompression", "no")
    bench.broker.directory.joinpath("dump.rdb").mkdir()
    bench.broker.directory.joinpath("dump.rdb", "full").touch()
    bench.client.bgsave()
    wait_until(
        lambda: bench.client.info("persistence")["rdb_last_bgsave_status"] == "err", "it failed"
    )


def save_again(bench: Bench) -> None:
    bench.broker.directory.joinpath("dump.rdb", "full").unlink()
    bench.broker.directory.joinpath("dump.rdb").rmdir()
    bench.client.bgsave()


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with BrokerProcess() as server:
        yield server


@pytest.mark.parametrize(
    ("fault", "cure", "code"),
    [
        pytest.param(fill, empty, "maxmemory", marks=pytest.mark.long),
        (want_replicas, want_none, "NOREPLICAS"),
        pytest.param(fail_to_save, save_again, "MISCONF", marks=pytest.mark.long),
    ],
)
def test_a_worker_started_while_writes_are_refused_waits_and_then_works(
    bench: Bench, fault: Callable[[Bench], None], cure: Callable[[Bench], None], code: str
) -> None:
    bench.send(0)
    fault(bench)
    worker = bench.worker("threads", 1, ready=False)
    wait_until(lambda: code in worker.log, "it says why it waits")
    told = time.monotonic()
    wait_until(lambda: worker.log.count("Trying again in") >= 2, "it tries again")
    assert time.monotonic() - told > 1, "with a pause"
    assert worker.alive
    assert "Traceback" not in worker.log
    cure(bench)
    worker.wait_ready()
    wait_until(lambda: bench.done(1), "it works")
    assert len(worker.log.splitlines()) < 60


@pytest.mark.long
def test_a_worker_started_while_the_server_loads_its_data_waits_and_then_works(
    tmp_path: Path,
) -> None:
    slowly: dict[str, str | int] = {"loading-process-events-interval-bytes": 1024}
    with (
        BrokerProcess(persistent=True, config=slowly) as server,
        Bench(server, "cloche+redis", tmp_path) as bench,
    ):
        bench.send(0)
        for number in range(200):
            bench.client.set(f"ballast-{number}", secrets.token_hex(1000))
        send(bench.client, "BGREWRITEAOF")  # keys are loaded from its base file, one by one
        wait_until(
            lambda: not bench.client.info("persistence")["aof_rewrite_in_progress"], "rewritten"
        )
        server.stop()
        server.config["key-load-delay"] = 40_000  # μs each: a knob of the servers' own tests
        server.start(wait=False)
        wait_until(lambda: "loading" in said(server), "the server loads")
        worker = bench.worker("threads", 1, ready=False)
        wait_until(lambda: "loading the dataset" in worker.log.lower(), "it says why it waits")
        wait_until(lambda: said(server) == "", "the server has loaded")
        worker.wait_ready()
        wait_until(lambda: bench.done(1), "it works")
        assert "Traceback" not in worker.log


def said(server: BrokerProcess) -> str:
    """What the server answers a PING with, "" for a PONG."""
    try:
        with server.client() as client:
            client.ping()
    except redis.ConnectionError as error:
        return str(error).lower()
    return ""
