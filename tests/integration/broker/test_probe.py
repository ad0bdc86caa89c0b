"""The probe against real servers, good and bad."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from cloche.backoff import Backoff
from cloche.broker.connection.probe import probe, probe_with_retries
from cloche.errors import BrokerError, BrokerFault
from cloche.testing import BrokerProcess, free_port
from tests.integration.broker.conftest import Talk

Listen = Callable[[Talk], int]


def fault_of(url: str, **options: float) -> BrokerError:
    """The error that probing ``url`` ends with; it tells what to do and no secret."""
    with pytest.raises(BrokerError) as caught:
        probe(url, **{"connect_timeout": 2.0, "socket_timeout": 2.0, **options})  # type: ignore[arg-type]
    error = caught.value
    assert error.what
    assert error.why
    assert error.fix
    assert "s3cret" not in str(error)
    return error


def silence(link: socket.socket) -> None:
    while link.recv(1024):
        pass


def test_a_good_broker_yields_its_facts_and_is_left_without_a_trace(broker: BrokerProcess) -> None:
    facts = probe(broker.url)
    assert facts.server.startswith("valkey 9.")
    assert (facts.persistent, facts.persistence) == (True, "AOF always")
    assert (facts.policy, facts.role) == ("noeviction", "master")
    assert 0 < facts.took < 5
    with broker.client() as client:
        assert client.dbsize() == 0


def test_a_broker_is_reached_over_its_unix_socket_and_in_another_database() -> None:
    with BrokerProcess(password="s3cret") as server:
        url = server.unix_url.replace("virtual_host=0", "virtual_host=3")
        facts = probe(url)
        assert facts.url == url.replace("s3cret", "****")
        assert (facts.persistent, facts.persistence) == (False, "none")
        with server.client() as client:
            assert client.info("commandstats")["cmdstat_select"]["calls"] == 1


def test_snapshots_count_as_persistence() -> None:
    with BrokerProcess(config={"save": "60 1000"}) as server:
        facts = probe(server.url)
        assert (facts.persistent, facts.persistence) == (True, "RDB snapshots")


def test_a_port_without_listener_is_refused() -> None:
    error = fault_of(f"redis://127.0.0.1:{free_port()}/0")
    assert error.fault is BrokerFault.REFUSED
    assert "systemctl start redis-server" in error.fix


def test_a_missing_socket_file_is_refused(tmp_path: Path) -> None:
    error = fault_of(f"redis+socket://{tmp_path}/none.sock")
    assert error.fault is BrokerFault.REFUSED
    assert "no such socket file" in error.why


def test_an_unknown_host_is_a_dns_fault() -> None:
    error = fault_of("redis://host.invalid:6379/0")
    assert error.fault is BrokerFault.DNS
    assert "host.invalid" in error.what


def test_a_listener_that_never_answers_is_a_timeout(listener: Listen) -> None:
    begun = time.monotonic()
    error = fault_of(f"redis://127.0.0.1:{listener(silence)}/0", socket_timeout=0.3)
    assert error.fault is BrokerFault.TIMEOUT
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("user", [":wrong@", "nobody:s3cret@", ""])
def test_a_wrong_password_user_or_none_at_all_is_an_auth_fault(user: str) -> None:
    with BrokerProcess(password="s3cret") as server:
        error = fault_of(f"redis://{user}127.0.0.1:{server.port}/0")
        assert error.fault is BrokerFault.AUTH
        assert ("has none" in error.what) == (user == "")


def test_a_certificate_nobody_vouches_for_is_a_tls_fault(
    broker: BrokerProcess, tls_proxy: Callable[[int], int]
) -> None:
    error = fault_of(f"rediss://127.0.0.1:{tls_proxy(broker.port)}/0")
    assert error.fault is BrokerFault.TLS
    assert "self-signed" in error.why
    assert "ssl_ca_certs" in error.fix


@pytest.mark.parametrize("query", ["ssl_ca_certs={pem}", "ssl_cert_reqs=none"])
def test_tls_works_with_a_known_authority_or_with_checks_switched_off(
    broker: BrokerProcess, tls_proxy: Callable[[int], int], certificate: Path, query: str
) -> None:
    port = tls_proxy(broker.port)
    assert probe(f"rediss://127.0.0.1:{port}/0?{query.format(pem=certificate)}").role == "master"


def test_rediss_spoken_to_a_plain_server_is_a_tls_fault(broker: BrokerProcess) -> None:
    error = fault_of(f"rediss://127.0.0.1:{broker.port}/0", socket_timeout=0.5, connect_timeout=0.5)
    assert error.fault is BrokerFault.TLS
    assert "redis:// instead of rediss://" in error.fix


def test_redis_spoken_to_a_tls_port_is_a_tls_fault(
    broker: BrokerProcess, tls_proxy: Callable[[int], int]
) -> None:
    error = fault_of(f"redis://127.0.0.1:{tls_proxy(broker.port)}/0")
    assert error.fault is BrokerFault.TLS
    assert "rediss:// instead of redis://" in error.fix


def test_a_broker_that_loads_its_data_says_how_far_it_is(broker: BrokerProcess) -> None:
    with broker.client() as client, client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.set(f"key{number}", "x" * 100)
        pipe.execute()
        client.bgrewriteaof()
        _until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
    broker.stop()
    broker.config |= {"key-load-delay": 3000, "loading-process-events-interval-bytes": 1024}
    broker.start(wait=False)
    _until(lambda: "oading" in broker.log and _listens(broker.port))
    error = fault_of(broker.url)
    assert error.fault is BrokerFault.LOADING
    assert "% read" in error.why
    broker.kill()


def test_a_replica_is_read_only_even_if_it_lets_us_write(broker: BrokerProcess) -> None:
    for read_only in ("yes", "no"):
        config = {"replicaof": f"127.0.0.1 {broker.port}", "replica-read-only": read_only}
        with BrokerProcess(config=config) as replica:
            error = fault_of(replica.url)
            assert error.fault is BrokerFault.READ_ONLY
            assert "primary" in error.fix


def test_a_replica_that_hides_its_role_is_found_by_writing(broker: BrokerProcess) -> None:
    config = {
        "replicaof": f"127.0.0.1 {broker.port}",
        "user": "app on >s3cret ~* &* +@all -info",
    }
    with BrokerProcess(config=config) as replica:
        error = fault_of(f"redis://app:s3cret@127.0.0.1:{replica.port}/0")
        assert error.fault is BrokerFault.READ_ONLY
        assert error.why.startswith(("READONLY", "MASTERDOWN"))


def test_a_database_number_out_of_range_is_the_wrong_db(broker: BrokerProcess) -> None:
    error = fault_of(f"redis://127.0.0.1:{broker.port}/99")
    assert error.fault is BrokerFault.WRONG_DB
    assert "no database 99" in error.what


def test_an_acl_user_who_may_not_write_is_a_permission_fault() -> None:
    with BrokerProcess(config={"user": "reader on >s3cret ~* &* +@read +@connection"}) as server:
        error = fault_of(f"redis://reader:s3cret@127.0.0.1:{server.port}/0")
        assert error.fault is BrokerFault.PERMISSION
        assert "ACL SETUSER" in error.fix


def test_an_acl_user_limited_to_celerys_keys_and_without_info_is_enough() -> None:
    rule = "app on >s3cret ~_kombu* ~celery* ~unacked* &* +@all -@dangerous"
    with BrokerProcess(config={"user": rule}) as server:
        facts = probe(f"redis://app:s3cret@127.0.0.1:{server.port}/0")
        assert (facts.persistent, facts.persistence) == (None, "unknown")
        assert "s3cret" not in facts.url


def test_a_full_broker_is_full() -> None:
    with BrokerProcess(config={"maxmemory": "3mb", "maxmemory-policy": "noeviction"}) as server:
        with server.client() as client, pytest.raises(redis.exceptions.OutOfMemoryError):
            _fill(client)
        error = fault_of(server.url)
        assert error.fault is BrokerFault.FULL
        assert "maxmemory" in error.fix


def test_a_broker_without_a_connection_to_spare_is_full() -> None:
    with BrokerProcess(config={"maxclients": 1}) as server, server.client() as client:
        client.ping()
        error = fault_of(server.url)
        assert error.fault is BrokerFault.FULL
        assert "maxclients" in error.fix


def test_a_broker_that_cannot_save_its_data_is_full() -> None:
    with BrokerProcess() as server, server.client() as client:
        client.config_set("stop-writes-on-bgsave-error", "yes")
        client.config_set("save", "3600 1")
        client.set("key", "x")
        (server.directory / "dump.rdb").mkdir()  # a snapshot cannot replace a directory
        client.bgsave()
        _until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        error = fault_of(server.url)
        assert error.fault is BrokerFault.FULL
        assert "disk" in error.what


def test_a_cluster_node_is_refused_in_plain_words() -> None:
    with BrokerProcess(config={"cluster-enabled": "yes"}) as server:
        assert "Redis Cluster" in fault_of(server.url).what


def test_an_http_server_is_not_a_broker() -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        try:
            error = fault_of(f"redis://127.0.0.1:{web.server_port}/0")
        finally:
            web.shutdown()
            thread.join()
    assert error.fault is BrokerFault.NOT_A_BROKER
    assert "ss -ltnp" in error.fix


def test_a_frozen_broker_is_a_timeout(broker: BrokerProcess) -> None:
    broker.freeze()
    try:
        assert fault_of(broker.url, socket_timeout=0.3).fault is BrokerFault.TIMEOUT
    finally:
        broker.thaw()


def test_amqp_faults_are_told_apart_too(listener: Listen) -> None:
    assert fault_of(f"amqp://127.0.0.1:{free_port()}//").fault is BrokerFault.REFUSED
    assert fault_of("amqp://host.invalid//").fault is BrokerFault.DNS
    silent = f"amqp://127.0.0.1:{listener(silence)}//"
    assert fault_of(silent, connect_timeout=0.3, socket_timeout=0.3).fault is BrokerFault.TIMEOUT


def test_redis_and_amqp_mixed_up_is_not_a_broker(broker: BrokerProcess, listener: Listen) -> None:
    mixed = fault_of(f"amqp://127.0.0.1:{broker.port}//", connect_timeout=0.3)
    assert mixed.fault is BrokerFault.NOT_A_BROKER
    assert f"redis://127.0.0.1:{broker.port}/0" in mixed.fix

    def rabbit(link: socket.socket) -> None:
        link.recv(1024)
        link.sendall(b"AMQP\x00\x00\x09\x01")  # what RabbitMQ says to any other protocol

    mixed = fault_of(f"redis://127.0.0.1:{listener(rabbit)}/0")
    assert mixed.fault is BrokerFault.NOT_A_BROKER


def test_the_memory_transport_works_and_forgets() -> None:
    facts = probe("memory://")
    assert (facts.server, facts.persistent) == ("memory", False)


def test_the_first_usable_broker_of_a_failover_list_counts(broker: BrokerProcess) -> None:
    assert probe(f"redis://127.0.0.1:{free_port()}/0;{broker.url}").url == broker.url


def test_retries_end_when_the_broker_comes(broker: BrokerProcess) -> None:
    broker.stop()
    seen: list[tuple[int, BrokerFault, float]] = []

    def note(attempt: int, error: BrokerError, delay: float) -> None:
        seen.append((attempt, error.fault, delay))
        if attempt == 2:
            broker.start()

    facts = probe_with_retries(
        broker.url, tries=5, backoff=Backoff(first=0.01, factor=2), on_failure=note
    )
    assert facts.role == "master"
    assert seen == [(1, BrokerFault.REFUSED, 0.01), (2, BrokerFault.REFUSED, 0.02)]


def test_retries_are_bounded() -> None:
    seen: list[int] = []
    with pytest.raises(BrokerError):
        probe_with_retries(
            f"redis://127.0.0.1:{free_port()}/0",
            tries=3,
            backoff=Backoff(first=0.001),
            on_failure=lambda attempt, error, delay: seen.append(attempt),
        )
    assert seen == [1, 2]


def test_what_no_retry_can_mend_is_not_tried_again() -> None:
    seen: list[int] = []
    with BrokerProcess(password="s3cret") as server, pytest.raises(BrokerError):
        probe_with_retries(
            f"redis://127.0.0.1:{server.port}/0",
            tries=5,
            backoff=Backoff(first=5),
            on_failure=lambda attempt, error, delay: seen.append(attempt),
        )
    assert seen == []


def _fill(client: redis.Redis) -> None:
    for number in range(10_000):
        client.set(f"key{number}", "x" * 1000)


def _listens(port: int) -> bool:
    with socket.socket() as link:
        return link.connect_ex(("127.0.0.1", port)) == 0


def _until(condition: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.01)
