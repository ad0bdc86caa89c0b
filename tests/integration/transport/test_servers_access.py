"""What may not be: a user without a permission, a cluster, a replica, a scheme nobody knows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from kombu import Connection
from kombu.exceptions import OperationalError

from cloche.broker.connection.commands import send
from cloche.broker.connection.probe import probe
from cloche.errors import BrokerError, BrokerFault
from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport import servers
from tests.integration.transport.harness import Bench, connections
from tests.integration.transport.servers import CONNECTIONS, Reached

pytestmark = pytest.mark.long


@pytest.fixture(params=servers.PROGRAMS)
def path(request: pytest.FixtureRequest) -> Path:
    return servers.program(request.param)


@pytest.fixture
def limited(path: Path, tmp_path: Path) -> Iterator[Bench]:
    """A bench as the documented user."""
    with (
        CONNECTIONS["acl"](path) as reached,
        Bench(reached.server, "cloche+redis", tmp_path) as bench,
    ):
        bench.url = reached.url
        yield bench


def change(bench: Bench, *rules: str) -> None:
    send(bench.client, "ACL", "SETUSER", "tasks", *rules)


def test_a_worker_that_may_not_fetch_says_so_and_goes_on_when_it_may(limited: Bench) -> None:
    limited.send(1)
    change(limited, "-hset")
    worker = limited.worker("threads", 1, ready=False)
    wait_until(lambda: "ACL LOG names what is missing" in worker.log, "it says what is wrong")
    assert "fetching paused" in worker.log
    assert limited.client.llen("celery") == 1, "no message moved"
    assert limited.client.acl_log()[0]["object"] == "hset"
    change(limited, "+hset")
    wait_until(lambda: limited.done(1), "it goes on")
    wait_until(lambda: "fetching resumed" in worker.log, "it says so")
    assert worker.alive


def test_a_worker_without_remote_control_channels_ends_with_the_reason(limited: Bench) -> None:
    change(limited, "resetchannels")
    worker = limited.worker("threads", 1, ready=False)
    assert worker.process.wait(timeout=60) != 0
    assert "permission" in worker.log
    assert "channel" in worker.log


def test_a_worker_that_may_not_wait_or_listen_works_on_and_says_so_once(limited: Bench) -> None:
    worker = limited.worker("threads", 1)
    change(limited, "-brpop", "-psubscribe")
    for one in connections(limited.client):
        limited.client.client_kill_filter(_id=one["id"])
    for number in range(4):
        limited.send(number)
        wait_until(partial(limited.done, number + 1), "it still fetches")
        time.sleep(1)
    assert 1 <= worker.log.count("ACL LOG") <= 4, "once for each thing that is forbidden"
    assert worker.log.count("paused") <= 6
    assert worker.alive


def test_publishing_to_a_queue_of_others_is_refused_with_the_reason(limited: Bench) -> None:
    limited.send(1)
    with pytest.raises(OperationalError, match=r"(?i)permission"):
        limited.send(2, queue="accounting")
    assert not limited.client.keys("accounting*")


def test_a_user_without_info_is_served_all_the_same(limited: Bench) -> None:
    change(limited, "-info")
    limited.send(1)
    limited.worker("solo", 1)
    wait_until(lambda: limited.done(1), "it ran")


@pytest.mark.parametrize("connection", ["tcp", "socket", "password", "acl", "acl-prefix"])
def test_the_broker_check_reads_our_urls(path: Path, connection: str) -> None:
    with CONNECTIONS[connection](path) as reached:
        prefix = reached.options.get("global_keyprefix", "")
        facts = probe(reached.url, key_prefix=prefix)
        assert facts.server.partition(" ")[0] in path.name
        assert servers.PASSWORD not in facts.url


def test_the_broker_check_names_what_an_acl_forbids(path: Path) -> None:
    with CONNECTIONS["acl"](path) as reached, pytest.raises(BrokerError) as told:
        probe(reached.url, key_prefix="other:")
    assert told.value.fault is BrokerFault.PERMISSION


def test_a_user_who_may_pop_but_not_record_loses_nothing(limited: Bench) -> None:
    change(limited, "resetkeys", "~celery*", "~_kombu*", "~cloche:leases", "~cloche:paused")
    limited.client.lpush("celery", "message")
    with Connection(limited.url) as connection, pytest.raises(redis.ResponseError):
        connection.default_channel.basic_get("celery")
    assert limited.client.lrange("celery", 0, -1) == ["message"]


def test_a_wrong_password_is_refused_and_never_shown(path: Path) -> None:
    with CONNECTIONS["password"](path) as reached:
        wrong = reached.url.replace("p%40ss", "guessed")
        assert wrong != reached.url
        with Connection(wrong) as connection:
            assert "guessed" not in connection.as_uri()
            with pytest.raises(redis.AuthenticationError):
                connection.connect()


def test_another_database_is_another_place(path: Path) -> None:
    with CONNECTIONS["tcp"](path) as reached:
        with Connection(reached.url.removesuffix("0") + "3") as connection:
            channel = connection.default_channel
            channel.basic_publish(channel.prepare_message("x"), "", "somewhere")
        with redis.Redis(port=reached.server.port, db=3) as client:
            assert client.llen("somewhere") == 1


def test_an_unknown_scheme_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BrokerError, match="memcached") as told:
        Connection("cloche+memcached://localhost/").connect()
    assert "cloche+redis://" in told.value.fix


def test_a_redis_cluster_is_refused_with_the_reason(path: Path, tmp_path: Path) -> None:
    with (
        BrokerProcess(program=path, config={"cluster-enabled": "yes"}) as server,
        Bench(server, "cloche+redis", tmp_path) as bench,
    ):
        with Connection(bench.url) as connection, pytest.raises(BrokerError) as told:
            connection.ensure_connection(max_retries=1)
        assert "Redis Cluster" in str(told.value)
        assert "cloche+sentinel://" in told.value.fix
        with pytest.raises(BrokerError, match="Redis Cluster"):
            bench.send(1)
        with pytest.raises(BrokerError, match="Redis Cluster"):
            probe(bench.url)
        worker = bench.worker("solo", 1, ready=False)
        assert worker.process.wait(timeout=60) != 0
        assert "Redis Cluster" in worker.log
        assert "cloche+sentinel://" in worker.log.splitlines()[-1], "the fix"


def test_a_replica_is_not_written_to_and_the_check_says_why(path: Path, tmp_path: Path) -> None:
    with CONNECTIONS["tcp"](path) as first:
        config: dict[str, str | int] = {"replicaof": f"127.0.0.1 {first.server.port}"}
        with BrokerProcess(program=path, config=config) as replica:
            with pytest.raises(BrokerError) as told:
                probe(f"cloche+redis://127.0.0.1:{replica.port}/0")
            assert told.value.fault is BrokerFault.READ_ONLY
            _runs_once_it_is_the_master(Reached(replica, "", ""), tmp_path)


def test_a_master_that_lost_its_replicas_takes_nothing_and_the_worker_waits(
    path: Path, tmp_path: Path
) -> None:
    with CONNECTIONS["tcp"](path) as reached, Bench(reached.server, "cloche+redis", tmp_path) as b:
        worker = b.worker("threads", 1)
        b.client.config_set("min-replicas-to-write", 1)
        with pytest.raises((OperationalError, redis.ResponseError), match=r"NOREPLICAS|replicas"):
            b.send(1)
        wait_until(lambda: "paused" in worker.log, "it waits")
        b.client.config_set("min-replicas-to-write", 0)
        b.send(2)
        wait_until(lambda: b.done(1), "it goes on")
        assert worker.alive
        assert not b.ledger.count("start")[1]


def _runs_once_it_is_the_master(replica: Reached, folder: Path) -> None:
    with Bench(replica.server, "cloche+redis", folder) as bench:
        worker = bench.worker("solo", 1, ready=False)
        wait_until(lambda: "this server is a replica of 127.0.0.1" in worker.log, "it says why")
        send(bench.client, "REPLICAOF", "NO", "ONE")
        bench.send(1)
        wait_until(lambda: bench.done(1), "it runs what came", 30)
        assert worker.alive
