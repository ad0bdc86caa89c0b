"""Ways to reach a server: unix socket, password, limited user, TLS, Sentinel; Redis 7."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
from celery import Celery, states
from kombu import Connection, Queue

from cloche.broker.channel import Channel
from cloche.broker.commands import send
from cloche.broker.keys import Keys
from cloche.broker.lease import Lease
from cloche.broker.reaper import Reaper
from cloche.errors import BrokerError
from cloche.testing import BrokerProcess, free_port
from tests.integration.transport.harness import APP, Bench, wait_until
from tests.integration.transport.servers import ServerProcess, debian_redis

assert Queue  # imports kombu.serialization, which reads our entry point


def round_trip(url: str, **options: object) -> None:
    """Publish, fetch, settle; leave nothing behind."""
    with Connection(url, transport_options=options) as connection:
        assert isinstance(connection.default_channel, Channel)
        with closing(connection.SimpleQueue("things")) as queue:
            for number in range(20):
                queue.put({"number": number})
            for number in range(20):
                message = queue.get(timeout=5)
                assert message.payload == {"number": number}
                message.ack()
            assert connection.default_channel._size("things") == 0


def test_by_unix_socket_with_results() -> None:
    with BrokerProcess() as broker:
        url = broker.unix_url.replace("redis+socket://", "cloche+socket://")
        round_trip(url)
        app = Celery(backend=url, set_as_current=False)
        app.backend.store_result("id", 5, states.SUCCESS)
        assert app.AsyncResult("id").get(timeout=5) == 5
        app.close()


def test_with_a_password() -> None:
    with BrokerProcess(password="s3 cret/%") as broker:
        address = f"127.0.0.1:{broker.port}/0"
        round_trip(f"cloche+redis://:s3%20cret%2F%25@{address}")
        with (
            pytest.raises(redis.AuthenticationError),
            Connection(f"cloche+redis://:wrong@{address}") as connection,
        ):
            connection.connect()


def test_the_password_is_not_shown() -> None:
    shown = Connection("cloche+redis://user:secret@localhost:1/0").as_uri()
    assert "secret" not in shown
    assert shown.startswith("cloche+redis://user:")


def test_in_another_database() -> None:
    with BrokerProcess() as broker:
        with Connection(f"cloche+redis://127.0.0.1:{broker.port}/3") as connection:
            connection.default_channel.basic_publish(
                connection.default_channel.prepare_message("x"), "", "somewhere"
            )
        with redis.Redis(port=broker.port, db=3) as client:
            assert client.llen("somewhere") == 1


def test_a_user_limited_to_a_prefix_is_enough_for_a_worker(tmp_path: Path) -> None:
    with BrokerProcess() as broker:
        admin = broker.client()
        # Patterns that are subscribed to must be allowed literally (Redis' rule for PSUBSCRIBE).
        listened = "&app:/0.celery.pidbox &app:/0.celeryev/worker.*"
        rights = f"on >pw ~app:* &app:* {listened} +@all -@admin -@dangerous +info"
        send(admin, "ACL", "SETUSER", "app", *rights.split())
        with Bench(broker, "cloche+redis", tmp_path) as bench:
            bench.url = f"cloche+redis://app:pw@127.0.0.1:{broker.port}/0"
            bench.options["global_keyprefix"] = "app:"
            worker = bench.worker("threads", 2)
            for number in range(10):
                bench.send(number)
            bench.send(10, countdown=0.5)
            wait_until(lambda: bench.done(11), "all ran")
            assert bench.app.control.ping(timeout=3)
            assert worker.stop() == 0
        foreign = [key for key in admin.keys("*") if not str(key).startswith("app:")]
        assert foreign == []
        admin.close()


def test_a_user_who_may_pop_but_not_record_loses_nothing() -> None:
    with BrokerProcess() as broker:
        admin = broker.client()
        rights = "on >pw ~things* ~_kombu* ~cloche:leases ~cloche:paused +@all -@admin"
        send(admin, "ACL", "SETUSER", "app", *rights.split())
        admin.lpush("things", "message")
        with Connection(f"cloche+redis://app:pw@127.0.0.1:{broker.port}/0") as connection:
            channel = connection.default_channel
            with pytest.raises(redis.ResponseError):
                channel.basic_get("things")
        assert admin.lrange("things", 0, -1) == ["message"]
        admin.close()


def test_a_cluster_is_refused_in_plain_words() -> None:
    with BrokerProcess(config={"cluster-enabled": "yes"}) as broker:
        admin = broker.client()
        send(admin, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: admin.cluster("INFO")["cluster_state"] == "ok", "the cluster is up")
        with (
            pytest.raises(BrokerError, match="Redis Cluster"),
            Connection(f"cloche+redis://127.0.0.1:{broker.port}/0") as connection,
        ):
            connection.connect()
        admin.close()


def test_an_unknown_scheme_is_refused_in_plain_words() -> None:
    with pytest.raises(BrokerError, match="memcached"):
        Connection("cloche+memcached://localhost/").connect()


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[ServerProcess]:
    program = debian_redis()
    if program is None:
        pytest.skip("no Redis with TLS; sh tools/test-servers.sh unpacks Debian's")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"],
            *subject,
            *files,
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    lines = [f"tls-port {port}", "port 0", "bind 127.0.0.1", "tls-auth-clients no"]
    lines += [f"tls-cert-file {certificate}", f"tls-key-file {key}", "appendonly no"]
    server = ServerProcess(tmp_path / "server", lines, program=program, port=port)
    with server:
        client = redis.Redis(port=port, ssl=True, ssl_ca_certs=str(certificate))
        server.wait_ready(client)
        client.close()
        yield server


def test_redis_7_over_tls_with_certificate_check(tls_server: ServerProcess, tmp_path: Path) -> None:
    url = f"cloche+rediss://127.0.0.1:{tls_server.port}/0"
    certificate = tmp_path / "cert.pem"
    round_trip(f"{url}?ssl_ca_certs={certificate}")
    app = Celery(
        backend=f"{url}?ssl_ca_certs={certificate}&ssl_cert_reqs=required", set_as_current=False
    )
    app.backend.store_result("id", 5, states.SUCCESS)
    assert app.AsyncResult("id").get(timeout=5) == 5
    app.close()
    with pytest.raises(redis.ConnectionError), Connection(url) as connection:
        connection.connect()  # the certificate is checked unless told otherwise


def test_redis_7_reaps_a_dead_consumer(tmp_path: Path) -> None:
    program = debian_redis()
    if program is None:
        pytest.skip("no Redis 7; sh tools/test-servers.sh unpacks Debian's")
    port = free_port()
    server = ServerProcess(tmp_path, [f"port {port}", "bind 127.0.0.1"], program=program, port=port)
    with server, redis.Redis(port=port) as client:
        server.wait_ready(client)
        keys = Keys()
        dead = Lease(keys, 0.05)
        dead.join(client)
        with Connection(f"cloche+redis://127.0.0.1:{port}/0") as connection:
            channel = connection.default_channel
            channel.basic_publish(channel.prepare_message("x"), "", "things")
        (raw,) = client.lrange("things", 0, -1)
        client.delete("things")
        client.hset(dead.inflight, "0/things", raw)
        client.rename(dead.inflight, keys.reaped(dead.consumer))
        client.sadd(keys.reaping, dead.consumer)
        assert Reaper(client, keys, max_deliveries=3).reap(dead.consumer) == 1
        assert client.llen("things") == 1
        assert client.keys("cloche:reap*") == []


def test_sentinel_failover_loses_nothing_that_was_replicated(tmp_path: Path) -> None:
    with ExitStack() as stack:
        primary_port, replica_port, sentinel_port = free_port(), free_port(), free_port()
        primary = stack.enter_context(
            ServerProcess(
                tmp_path / "a", [f"port {primary_port}", "bind 127.0.0.1"], port=primary_port
            )
        )
        first = stack.enter_context(redis.Redis(port=primary_port))
        primary.wait_ready(first)
        stack.enter_context(
            ServerProcess(
                tmp_path / "b",
                [
                    f"port {replica_port}",
                    "bind 127.0.0.1",
                    f"replicaof 127.0.0.1 {primary_port}",
                    "repl-diskless-sync-delay 0",
                ],
                port=replica_port,
            )
        )
        second = stack.enter_context(redis.Redis(port=replica_port))
        wait_until(lambda: _linked(second), "the replica follows")
        lines = [
            f"port {sentinel_port}",
            "bind 127.0.0.1",
            f"sentinel monitor main 127.0.0.1 {primary_port} 1",
            "sentinel down-after-milliseconds main 1000",
            "sentinel failover-timeout main 5000",
        ]
        sentinel = stack.enter_context(
            ServerProcess(tmp_path / "s", lines, sentinel=True, port=sentinel_port)
        )
        watcher = stack.enter_context(redis.Redis(port=sentinel_port))
        sentinel.wait_ready(watcher)
        wait_until(lambda: _knows_replica(watcher), "the sentinel knows the replica", 30)

        bench = Bench(_Address(replica_port), "cloche+redis", tmp_path)  # type: ignore[arg-type]
        bench.url = f"cloche+sentinel://127.0.0.1:{sentinel_port}/0"
        bench.options |= {"master_name": "main"}
        with bench:
            worker = bench.worker("threads", 2)
            for number in range(20):
                bench.send(number, seconds=0.2)
            wait_until(lambda: len(bench.ledger.count("end")) >= 4, "under way")
            send(first, "WAIT", 1, 1000)
            primary.kill()
            wait_until(lambda: bench.done(20), "all ran after the failover", 40)
            assert worker.alive
            wait_until(lambda: bench.inflight() == 0, "nothing in flight")
            assert worker.stop() == 0


class _Address:
    """What Bench needs of a broker."""

    def __init__(self, port: int) -> None:
        self.port = port

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)


def _linked(client: redis.Redis) -> bool:
    try:
        return bool(client.info("replication").get("master_link_status") == "up")
    except redis.RedisError:
        return False


def _knows_replica(client: redis.Redis) -> bool:
    found = send(client, "SENTINEL", "REPLICAS", "main")
    time.sleep(0.1)
    return bool(found)


assert APP
