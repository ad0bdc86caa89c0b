"""TLS with certificates of a private authority, on Debian's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from cloche.broker.connection.probe import probe
from cloche.broker.results import waiter as results_waiting
from cloche.broker.results.redis_backend import aget
from cloche.errors import BrokerError, BrokerFault
from cloche.testing import wait_until
from tests.integration.transport import servers
from tests.integration.transport.harness import Bench

pytestmark = pytest.mark.long

NAME = "tests.integration.transport.servers_app.double"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with servers.tls_server(servers.program("redis-7"), folder) as (_, port):
        yield port


def url(port: int, **query: object) -> str:
    return f"cloche+rediss://127.0.0.1:{port}/0?" + "&".join(f"{k}={v}" for k, v in query.items())


def send(broker: str, **conf: Any) -> None:
    """Publish one task; raises what Celery raises."""
    app = Celery(broker=broker)
    app.conf.update(task_ignore_result=True, **conf)
    try:
        app.send_task("some.task", retry=False)
    finally:
        app.close()


def test_a_certificate_of_an_unknown_authority_is_refused(port: int) -> None:
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        send(f"cloche+rediss://127.0.0.1:{port}/0")
    with pytest.raises(BrokerError) as told:
        probe(f"cloche+rediss://127.0.0.1:{port}/0")
    assert told.value.fault is BrokerFault.TLS
    assert "ssl_ca_certs" in told.value.fix


def test_a_certificate_for_another_host_is_refused_unless_that_is_allowed(
    folder: Path, port: int
) -> None:
    other = folder / "other"
    other.mkdir()
    for name in ("crt", "key"):
        (other / f"server.{name}").write_bytes((folder / f"other.{name}").read_bytes())
    (other / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    with servers.tls_server(servers.program("redis-7"), other) as (server, elsewhere):
        with pytest.raises(OperationalError, match="IP address mismatch"):
            send(url(elsewhere, ssl_ca_certs=folder / "ca.crt"))
        send(url(elsewhere, ssl_ca_certs=folder / "ca.crt", ssl_check_hostname="false"))
        send(url(elsewhere, ssl_cert_reqs="none", ssl_check_hostname="false"))
        with server.client() as client:
            assert client.llen("celery") == 2


def test_options_of_celery_say_the_same_as_the_url(folder: Path, port: int) -> None:
    # Another database than above: kombu shares connections by their URL, whatever their TLS.
    broker = f"cloche+rediss://127.0.0.1:{port}/1"
    send(broker, broker_use_ssl={"ssl_ca_certs": str(folder / "ca.crt")})


def test_a_server_that_wants_client_certificates_gets_one(folder: Path) -> None:
    path = servers.program("redis-7")
    with servers.tls_server(path, folder, clients="yes") as (server, port):
        trusted = {"ssl_ca_certs": folder / "ca.crt"}
        with pytest.raises(OperationalError):
            send(url(port, **trusted))
        pair = {"ssl_certfile": folder / "client.crt", "ssl_keyfile": folder / "client.key"}
        send(url(port, **trusted, **pair))
        with server.client() as client:
            assert client.llen("celery") == 1


def test_results_can_be_awaited_over_tls(folder: Path, tmp_path: Path) -> None:
    with (
        servers.tls_server(servers.program("redis-7"), folder) as (server, port),
        Bench(server, "cloche+redis", tmp_path) as bench,
    ):
        bench.url = url(port, ssl_ca_certs=folder / "ca.crt")
        bench.worker(
            "threads",
            1,
            conf={"imports": [NAME.rpartition(".")[0]], "result_backend": bench.url},
        )
        bench.app.conf.result_backend = bench.url
        result = bench.app.send_task(NAME, [21])

        async def wait() -> Any:
            try:
                return await aget(result, timeout=10)
            finally:
                await results_waiting.close(result.backend)

        assert asyncio.run(wait()) == 42
        wait_until(lambda: bench.inflight() == 0, "nothing in flight")
