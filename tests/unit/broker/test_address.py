"""Reading and masking broker URLs."""

from __future__ import annotations

import ssl
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import safequote

from cloche.broker.connection.address import (
    alternates,
    fitting,
    parameters,
    parse_address,
    scheme_of,
)
from cloche.errors import BrokerError, BrokerFault
from cloche.settings import mask_url


@given(st.text(string.printable, min_size=4).filter(lambda text: text.strip()))
def test_no_password_survives_masking(password: str) -> None:
    url = f"redis://me:{safequote(password)}@host:1/0"
    assert mask_url(url) == "redis://me:****@host:1/0"
    assert parse_address(url).password == password


def test_defaults_are_those_of_kombu() -> None:
    at = parse_address("redis://")
    assert (at.host, at.port, at.db, at.password, at.tls) == ("127.0.0.1", 6379, 0, None, None)


def test_every_part_is_read() -> None:
    at = parse_address("redis://me:p%40ss@[::1]:7000/5")
    assert (at.host, at.port, at.db) == ("::1", 7000, 5)
    assert (at.username, at.password) == ("me", "p@ss")
    assert "p@ss" not in repr(at)


@pytest.mark.parametrize(
    "url",
    [
        "redis+socket://me:pw@/run/my%20redis.sock?virtual_host=2",
        "unix://me:pw@/run/my%20redis.sock?db=2",
        "unix:///run/my%20redis.sock?db=2&username=me&password=pw",
    ],
)
def test_a_socket_url_is_read(url: str) -> None:
    at = parse_address(url)
    assert (at.path, at.db, at.username, at.password) == ("/run/my redis.sock", 2, "me", "pw")
    assert at.local


def test_certificates_are_checked_unless_the_url_says_otherwise() -> None:
    assert parse_address("rediss://h").tls == {"ssl_cert_reqs": "required"}
    loose = parse_address("rediss://h?ssl_cert_reqs=none").tls
    assert loose is not None
    assert loose["ssl_cert_reqs"] == 0


@pytest.mark.parametrize("word", ["none", "CERT_NONE", "Cert_None", "ssl.CERT_NONE", "0"])
def test_a_certificate_requirement_is_read_however_it_is_written(word: str) -> None:
    found = parameters(f"rediss://h?ssl_cert_reqs={word}")
    assert found["ssl_cert_reqs"] is ssl.CERT_NONE
    given = {"path": "/s", "ssl_cert_reqs": word, "socket_keepalive": True, "host": "h"}
    assert fitting(given) == {"path": "/s", "ssl_cert_reqs": ssl.CERT_NONE}


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://h", None),
        ("redis://h/", None),
        ("redis://h//", None),
        ("redis://h/0", 0),
        ("redis://h//3", 3),
        ("redis://h/1?db=2", 2),
        ("redis://h?virtual_host=/4", 4),
        ("redis://h/1?virtual_host=4", 1),
        ("cloche+unix:///s?virtual_host=/5", 5),
    ],
)
def test_a_database_is_read_as_kombu_and_redis_py_write_it(url: str, database: int | None) -> None:
    assert parameters(url).get("db") == database


def test_options_of_a_url_have_redis_pys_types() -> None:
    query = "socket_timeout=2&retry_on_timeout=yes&max_connections=9&health_check_interval=1.5"
    found = parameters(f"rediss://h?{query}&protocol=3&ssl_min_version=TLSv1.2&client_name=me")
    assert found["ssl_min_version"] is ssl.TLSVersion.TLSv1_2
    assert (found["socket_timeout"], found["retry_on_timeout"]) == (2.0, True)
    assert (found["max_connections"], found["health_check_interval"]) == (9, 1.5)
    assert (found["protocol"], found["client_name"]) == (3, "me")


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("redis://:p%2Fw@h", (None, "p/w")),
        ("redis://u:@h", ("u", None)),
        ("redis://u@h", ("u", None)),
        ("redis://u%40x:p%3Aw@h", ("u@x", "p:w")),
        ("redis://h?username=u&password=p%26w", ("u", "p&w")),
        ("redis://u:p@h?credential_provider=redis.UsernamePasswordCredentialProvider", (None,) * 2),
    ],
)
def test_a_login_is_read_wherever_it_stands(url: str, login: tuple[str | None, ...]) -> None:
    found = parameters(url)
    assert (found.get("username"), found.get("password")) == login


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("", "redis://localhost:6379/0"),
        ("localhost:6379", "redis://localhost:6379"),
        ("redis://:s3cret", "host:port"),
        ("redis://h/0?socket_timout=5", "host:port"),
        ("redis://h/0?socket_timeout=soon", "host:port"),
        ("unix://?db=1", "host:port"),
        ("valkey://h:1/0", "redis://h:1/0"),
        ("redis://h:port/0", "host:port"),
        ("redis://h/zero", "database-number"),
        ("redis+socket://", "host:port"),
        ("redis+socket:///s?virtual_host=x", "database-number"),
        ("rediss://h?ssl_cert_reqs=maybe", "host:port"),
        ("redis://:s3c/ret@h/0", "host:port"),
        ("me:s3c@h:6379", "redis://me:****@h:6379"),
    ],
)
def test_a_bad_url_is_told_with_a_good_one(url: str, hint: str) -> None:
    with pytest.raises(BrokerError) as caught:
        parse_address(url)
    assert caught.value.fault is BrokerFault.BAD_URL
    assert hint in caught.value.fix
    assert "s3c" not in str(caught.value)


def test_a_failover_list_is_split_and_a_semicolon_in_a_path_is_not() -> None:
    assert alternates("redis://a;amqp://b") == ["redis://a", "amqp://b"]
    assert alternates("filesystem://a;b") == ["filesystem://a;b"]
    assert scheme_of("amqp://b") == "amqp"
