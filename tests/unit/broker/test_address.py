"""Reading and masking broker URLs."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import safequote

from cloche.broker.address import alternates, masked, parse_address, scheme_of
from cloche.errors import BrokerError, BrokerFault


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost/0", "redis://localhost/0"),
        ("redis://:s3cret@h:1/0", "redis://:**@h:1/0"),
        ("redis://me:s3cret@h/0?ssl_password=s3cret&a=b", "redis://me:**@h/0?ssl_password=**&a=b"),
        ("redis://me:s3cret@with@at@h/0", "redis://me:**@h/0"),
        ("redis://me:s3c/ret@h/0", "redis://me:**@h/0"),
        ("redis+socket://:s3cret@/run/r.sock?virtual_host=1",) * 2,
        ("redis://:s3cret@a/0;redis://:s3cret2@b/0", "redis://:**@a/0;redis://:**@b/0"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert masked(url) == shown.replace("s3cret", "**")
    assert "s3cret" not in masked(url)


@given(st.text(string.printable, min_size=4).filter(lambda text: text.strip()))
def test_no_password_survives_masking(password: str) -> None:
    url = f"redis://me:{safequote(password)}@host:1/0"
    assert masked(url) == "redis://me:**@host:1/0"
    assert parse_address(url).password == password


def test_defaults_are_those_of_kombu() -> None:
    at = parse_address("redis://")
    assert (at.host, at.port, at.db, at.password, at.tls) == ("127.0.0.1", 6379, 0, None, None)


def test_every_part_is_read() -> None:
    at = parse_address("redis://me:p%40ss@[::1]:7000/5")
    assert (at.host, at.port, at.db) == ("::1", 7000, 5)
    assert (at.username, at.password) == ("me", "p@ss")
    assert "p@ss" not in repr(at)


def test_a_socket_url_is_read() -> None:
    at = parse_address("redis+socket://me:pw@/run/my%20redis.sock?virtual_host=2")
    assert (at.path, at.db, at.username, at.password) == ("/run/my redis.sock", 2, "me", "pw")
    assert at.local


def test_certificates_are_checked_unless_the_url_says_otherwise() -> None:
    assert parse_address("rediss://h").tls == {"ssl_cert_reqs": "required"}
    loose = parse_address("rediss://h?ssl_cert_reqs=none").tls
    assert loose is not None
    assert loose["ssl_cert_reqs"] == 0


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("", "redis://localhost:6379/0"),
        ("localhost:6379", "redis://localhost:6379"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("valkey://h:1/0", "redis://h:1/0"),
        ("redis://h:port/0", "host:port"),
        ("redis://h/zero", "database-number"),
        ("redis+socket://", "host:port"),
        ("redis+socket:///s?virtual_host=x", "database-number"),
        ("rediss://h?ssl_cert_reqs=maybe", "host:port"),
        ("redis://:s3c/ret@h/0", "host:port"),
        ("me:s3c@h:6379", "redis://me:**@h:6379"),
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
