"""Envelopes, templates, key names, URLs: pure functions."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.utils.json import dumps, loads

from cloche.broker import message
from cloche.broker.connection import url as transport_url
from cloche.broker.keys import Keys
from cloche.broker.lease.lease import field_of, key_of, number_of, tag_of
from cloche.broker.publish.template import NotTemplatableError, Template, new_id
from cloche.errors import BrokerError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def envelope(**headers: Any) -> message.Envelope:
    return {
        "body": base64.b64encode(b'[[1], {}, {"chain": null}]').decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"id": "@@cloche-id@@", "argsrepr": "@@cloche-args@@", **headers},
        "properties": {
            "delivery_tag": "x",
            "body_encoding": "base64",
            "delivery_info": {},
            "argsrepr": "a",
        },
    }


@given(st.binary(max_size=200))
def test_junk_is_refused_with_a_reason_and_nothing_else(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert "properties" in message.decode(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "list"),
        (b'{"body": ""}', "without properties"),
        (b'{"properties": {}}', "without body"),
        (b'{"properties": {"delivery_info": 3}, "body": ""}', "delivery_info"),
        (b'{"properties": {}, "body": "", "headers": []}', "headers"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_the_reason_is_told(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        message.decode(raw)


#: What kombu's JSON has and others do not.
ODD = st.integers() | st.floats() | st.characters(categories=["Cs"]) | st.text() | st.none()


@given(headers=st.dictionaries(st.text() | st.just("\udce9"), ODD | st.lists(ODD, max_size=2)))
def test_headers_are_read_as_kombu_reads_them(headers: dict[str, Any]) -> None:
    raw = dumps(envelope(**headers)).encode()
    assert ascii(message.decode(raw)["headers"]) == ascii(loads(raw)["headers"])


def test_what_producers_write_is_not_taken_for_ours() -> None:
    theirs = {"x-delay": 5, "x-deaths": [1, 2], "x-delivery-count": 9}
    one = envelope(**theirs)
    one["properties"]["timestamp"] = 7
    found = message.decode(dumps(one).encode())
    assert theirs.items() <= found["headers"].items()
    assert (message.delivery_count(found), message.waited(found), message.published(found)) == (
        0, None, None,
    )  # fmt: skip
    assert message.delivery_count({**one, message.OWN: "junk"}) == 0


def test_what_an_earlier_version_wrote_is_adopted() -> None:
    one = envelope(**{"x-delay": 5, "x-deaths": [{"consumer": "a", "at": 1}], "mine": 1})
    one["headers"]["x-delivery-count"] = 1
    one["properties"]["timestamp"] = 7.5
    found = message.decode(dumps(one).encode())
    assert (message.delivery_count(found), message.waited(found), message.published(found)) == (
        1, 5, 7.5,
    )  # fmt: skip
    assert found["headers"] == {**envelope()["headers"], "mine": 1}
    assert "timestamp" not in found["properties"]


def test_deaths_are_counted_told_and_forgiven() -> None:
    one = envelope()
    assert message.delivery_count(one) == 0
    message.count_death(one, "host:1", 5.0)
    message.count_death(one, "host:2", 6.0)
    assert message.delivery_count(one) == 2
    assert [death["consumer"] for death in message.deaths(one)] == ["host:1", "host:2"]
    message.forgive(one)
    assert message.delivery_count(one) == 0
    assert message.deaths(one) == []
    assert one["headers"] == envelope()["headers"]


@given(args=st.lists(JSON, max_size=3), kwargs=st.dictionaries(st.text(), JSON, max_size=2))
def test_a_filled_template_carries_exactly_the_arguments(
    args: list[Any], kwargs: dict[str, Any]
) -> None:
    task_id = new_id()
    template = Template(envelope())
    found = json.loads(template.text(template.values(task_id, tuple(args), kwargs)))
    assert json.loads(base64.b64decode(found["body"])) == [args, kwargs, {"chain": None}]
    assert found["headers"]["id"] == task_id
    assert found["properties"]["delivery_tag"] == task_id
    assert message.published(found) is not None
    assert "timestamp" not in found["properties"]
    assert "argsrepr" not in found["properties"]


def test_a_compressed_message_is_not_templatable() -> None:
    with pytest.raises(NotTemplatableError):
        Template(envelope(compression="gzip"))


@given(
    prefix=st.sampled_from(["", "app:"]), name=st.text(min_size=1).filter(lambda n: "\x06" not in n)
)
def test_a_queues_name_is_found_in_each_of_its_lists(prefix: str, name: str) -> None:
    keys = Keys(prefix)
    for suffix in keys.suffixes:
        assert keys.queue_of(keys.queue(name, suffix)) == name
    assert list(keys.steps) == [0, 3, 6, 9]


@given(number=st.integers(0), key=st.text(min_size=1))
def test_a_delivery_tag_says_who_holds_what_of_which_queue(number: int, key: str) -> None:
    consumer, field = field_of(tag_of("host:12:ab", f"{number}/{key}"))
    assert (consumer, number_of(field), key_of(field)) == ("host:12:ab", number, key)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("cloche+redis://", {"host": "127.0.0.1"}),
        ("cloche+redis://h:7/3", {"host": "h", "port": 7, "db": 3}),
        ("cloche+redis://u:p%40w@h/", {"host": "h", "username": "u", "password": "p@w"}),
        ("cloche+redis://h/?socket_timeout=2.5", {"host": "h", "socket_timeout": 2.5}),
        ("cloche+rediss://h/1?ssl_cert_reqs=none", {"host": "h", "db": 1, "ssl_cert_reqs": 0}),
        ("cloche+rediss://h/?ssl_check_hostname=false", {"host": "h", "ssl_check_hostname": False}),
        ("cloche+socket:///run/s?virtual_host=2", {"path": "/run/s", "db": 2}),
        ("cloche+unix:///run/s?db=2", {"path": "/run/s", "db": 2}),
    ],
)
def test_what_a_url_says(url: str, expected: dict[str, Any]) -> None:
    assert transport_url.parameters(Connection(url)) == expected
    assert transport_url.uses_tls(Connection(url)) == ("rediss" in url)


def test_a_list_of_urls_leads_to_each_and_says_at_once_what_it_cannot_have() -> None:
    connection = Connection("cloche+redis://a/1;cloche+socket:///run/s")
    transport_url.check(connection)
    connection.maybe_switch_next()
    assert transport_url.parameters(connection) == {"path": "/run/s", "db": 0}
    with pytest.raises(BrokerError, match="socket_timeout"):
        transport_url.check(Connection("cloche+redis://a;cloche+redis://b?socket_timeout=1"))
    with pytest.raises(BrokerError, match="decode_responses"):
        transport_url.check(Connection("cloche+redis://a?decode_responses=true"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("cloche+sentinel://a:1/0", [("a", 1)]),
        ("cloche+sentinel://a:1/0;sentinel://b", [("a", 1), ("b", 26379)]),
        ("cloche+sentinel://a/0;cloche+sentinel://b:2/0", [("a", 26379), ("b", 2)]),
    ],
)
def test_all_sentinels_of_a_url_are_asked(url: str, expected: list[tuple[str, int]]) -> None:
    assert transport_url.sentinels(Connection(url), 26379) == expected


@pytest.mark.parametrize("url", ["redis://me:secret@there:6390/3", "redis://there", "redis://"])
def test_inspect_stats_tells_the_address_as_of_a_stock_url_and_no_password(url: str) -> None:
    told = transport_url.without_password(Connection(f"cloche+{url}").info())
    stock = transport_url.without_password(Connection(url).info())
    for name in ("hostname", "port", "userid", "virtual_host"):
        assert told[name] == stock[name]
    assert "secret" not in str(told)


def test_ids_differ_within_and_between_forked_processes() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "\n".join(new_id() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as theirs:
        ids = [*theirs.read().split(), *(new_id() for _ in range(100))]
    assert len(set(ids)) == 200
    assert {str(uuid.UUID(one)) for one in ids} == set(ids)
    assert {uuid.UUID(one).version for one in ids} == {4}
