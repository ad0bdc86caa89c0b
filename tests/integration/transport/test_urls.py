"""One server, reached by every spelling of its address: the task arrives, its result comes."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from kombu import Connection
from redis import UsernamePasswordCredentialProvider

import cloche
from cloche.settings import load
from cloche.testing import BrokerProcess

PASSWORD = "p@ss/w:rd"
QUOTED = quote(PASSWORD, safe="")


class Provider(UsernamePasswordCredentialProvider):
    """Knows the password by itself."""

    def __init__(self) -> None:
        super().__init__(password=PASSWORD)


@pytest.fixture(scope="module")
def server() -> Iterator[BrokerProcess]:
    with BrokerProcess(password=PASSWORD) as found:
        yield found


@contextmanager
def hardened(url: Any, results: str | None = None, **conf: Any) -> Iterator[Celery]:
    app = Celery(broker=url, backend=results or url, set_as_current=False)
    app.conf.update(task_publish_retry=False, task_default_queue="q", **conf)
    cloche.harden(app, load({}, environ={}).settings)
    try:
        yield app
    finally:
        app.close()


SPELLINGS = {
    "no user": (0, "redis://:{pw}@127.0.0.1:{port}"),
    "a user": (0, "redis://default:{pw}@127.0.0.1:{port}/"),
    "two slashes": (1, "redis://:{pw}@127.0.0.1:{port}//1"),
    "a database in the query": (2, "redis://:{pw}@127.0.0.1:{port}?db=2"),
    "a virtual host": (3, "redis://:{pw}@127.0.0.1:{port}?virtual_host=/3"),
    "a login in the query": (4, "redis://127.0.0.1:{port}/4?username=default&password={pw}"),
    "RESP3": (5, "redis://:{pw}@127.0.0.1:{port}/5?protocol=3&client_name=me"),
    "time-outs": (6, "redis://:{pw}@127.0.0.1:{port}/6?socket_timeout=5&retry_on_timeout=yes"),
    "a provider": (7, "redis://127.0.0.1:{port}/7?credential_provider=" + f"{__name__}.Provider"),
    "kombu's socket": (8, "redis+socket://:{pw}@{path}?virtual_host=8"),
    "redis-py's socket": (9, "unix://:{pw}@{path}?db=9"),
    "our socket": (10, "cloche+socket://{path}?virtual_host=10&password={pw}"),
    "a list": (11, "redis://127.0.0.1:1/11;redis://:{pw}@127.0.0.1:{port}/11"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_task_arrives_and_its_result_comes(server: BrokerProcess, spelling: str) -> None:
    database, form = SPELLINGS[spelling]
    path = server.unix_url.partition("@")[2] or server.unix_url.partition("://")[2]
    url = form.format(pw=QUOTED, port=server.port, path=path.partition("?")[0])
    results = url.rpartition(";")[2]
    broker: Any = url.split(";") if ";" in url else url
    with hardened(broker, results) as app, server.client() as client:
        assert str(app.backend_cls or app.conf.result_backend).startswith("cloche+")
        assert app.conf.result_backend == results
        sent = app.send_task("nobody")
        app.backend.store_result(sent.id, 3, "SUCCESS")
        assert sent.get(timeout=10) == 3

        async def waited() -> Any:
            return await app.backend.aget(sent.id, timeout=10)

        assert asyncio.run(waited()) == 3
        client.select(database)
        assert client.llen("q") == 1
        assert client.exists(f"celery-task-meta-{sent.id}")
        client.flushdb()


BESIDE: dict[str, tuple[int, str, dict[str, Any]]] = {
    "a password": (12, "redis://127.0.0.1:{port}/12", {"password": PASSWORD}),
    "a user": (13, "redis://127.0.0.1:{port}/13", {"user": "default", "password": PASSWORD}),
    "what the URL says, too": (14, "redis://:{pw}@127.0.0.1:{port}/14", {"password": "wrong"}),
    "a port": (15, "redis://:{pw}@127.0.0.1/15", {"port": "{port}"}),
    "a database": (3, "redis://:{pw}@127.0.0.1:{port}", {"vhost": "3"}),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_set_beside_the_url_counts_where_the_url_does_not_say_it(
    server: BrokerProcess, what: str
) -> None:
    database, form, given = BESIDE[what]
    url = form.format(pw=QUOTED, port=server.port)
    conf = {f"broker_{name}": value for name, value in given.items()}
    if "port" in given:
        conf["broker_port"] = server.port
    with hardened(url, "cache+memory://", **conf) as app, server.client() as client:
        app.send_task("nobody", ignore_result=True)
        client.select(database)
        assert client.llen("q") == 1
        client.flushdb()


def test_a_provider_counts_instead_of_the_login_in_the_url(server: BrokerProcess) -> None:
    url = f"redis://nobody:wrong@127.0.0.1:{server.port}/0"
    with Connection(f"cloche+{url}", credential_provider=Provider()) as connection:
        connection.default_channel.client.ping()
    results = {"redis_backend_credential_provider": Provider()}
    with hardened(f"redis://:{QUOTED}@127.0.0.1:{server.port}/0", url, **results) as app:
        app.backend.client.ping()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3c/r3t@127.0.0.1:1/0",
        "redis://:s3c#r3t@127.0.0.1:1/0",
        "redis://:s3c?r3t@127.0.0.1:1/0",
        "redis://:s3c r3t@[::1:1/0",
        "redis://:s3cr3t",
        "redis://u:s3cr3t@127.0.0.1:1/0",
        "redis://127.0.0.1:1/0?password=s3cr3t",
        "rediss://:s3cr3t@127.0.0.1:1/0?ssl_cert_reqs=CERT_NONE&ssl_password=s3cr3t",
        "redis+socket://:s3cr3t@/nowhere.sock?virtual_host=x",
        "redis://:s3cr3t@127.0.0.1:1/0?unheard_of=1",
    ],
)
def test_no_password_is_told_by_what_fails(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    with hardened(url, broker_transport_options={"socket_connect_timeout": 1}) as app:
        app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 1}}
        for attempt in (
            lambda: app.send_task("nobody"),
            lambda: app.backend.store_result("x", 1, "SUCCESS"),
            lambda: told.append(repr(app.backend) + app.backend.as_uri()),
            lambda: told.append(repr(app.connection()) + app.connection().as_uri()),
        ):
            try:
                attempt()
            except Exception:
                told.append(traceback.format_exc())
    assert told
    text = "".join(told) + caplog.text
    assert not [line for line in text.splitlines() if "s3c" in line or "r3t" in line]


def test_options_of_tls_are_read_in_dictionaries_too() -> None:
    loose = {"ssl_cert_reqs": "CERT_NONE"}
    url = "rediss://127.0.0.1:1/0?ssl_min_version=TLSv1.2"
    with hardened(url, broker_use_ssl=loose, redis_backend_use_ssl=loose) as app:
        found = app.backend.connparams
        assert (int(found["ssl_cert_reqs"]), int(found["ssl_min_version"])) == (0, 0x303)


def test_a_master_may_be_named_in_the_url_of_a_sentinel() -> None:
    with hardened("sentinel://127.0.0.1:1/2?master_name=tasks") as app:
        pool = app.backend.client.connection_pool
        assert (pool.service_name, pool.connection_kwargs["db"]) == ("tasks", 2)


def test_a_backend_that_the_loader_replaces_is_left_alone() -> None:
    app = Celery(broker="redis://127.0.0.1:1", backend="redis://127.0.0.1:1", set_as_current=False)
    app.loader.override_backends = {"redis": "tests.nowhere:Backend"}
    app.conf.broker_read_url = ["redis://127.0.0.1:1/1", "amqp://h"]
    cloche.harden(app, load({}, environ={}).settings)
    assert app.conf.result_backend == "redis://127.0.0.1:1"
    assert app.conf["broker_read_url"] == ["cloche+redis://127.0.0.1:1/1", "amqp://h"]
    app.close()


@pytest.mark.parametrize(
    ("results", "accepted", "extended"),
    [
        ("redis://h", ["json", "pickle"], True),
        ("rpc://", ["json", "pickle"], False),
        ("rpc://", ["json"], True),
        ("db+sqlite://", ["json", "yaml"], False),
    ],
)
def test_results_tell_of_arguments_where_that_stops_no_task(
    results: str, accepted: list[str], extended: bool
) -> None:
    app = Celery(broker="redis://127.0.0.1:1", backend=results, set_as_current=False)
    app.conf.accept_content = accepted
    cloche.harden(app, load({"results.extended": True}, environ={}).settings)
    assert bool(app.conf.result_extended) is extended
    app.close()
