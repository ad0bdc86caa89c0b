"""Envelopes, templates, key names, URLs: pure functions."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection

from cloche.broker import message, transport_url
from cloche.broker.channel_events import joined
from cloche.broker.keys import Keys
from cloche.broker.lease import field_of, key_of, number_of, tag_of
from cloche.broker.publish_template import NotTemplatableError, Template, new_ids

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


def test_deaths_are_counted_told_and_forgiven() -> None:
    one = envelope()
    assert message.delivery_count(one) == 0
    message.count_death(one, "host:1", 5.0)
    message.count_death(one, "host:2", 6.0)
    assert message.delivery_count(one) == 2
    assert [death["consumer"] for death in one["headers"][message.DEATHS]] == ["host:1", "host:2"]
    message.forgive(one)
    assert message.delivery_count(one) == 0
    assert message.DEATHS not in one["headers"]


@given(args=st.lists(JSON, max_size=3), kwargs=st.dictionaries(st.text(), JSON, max_size=2))
def test_a_filled_template_carries_exactly_the_arguments(
    args: list[Any], kwargs: dict[str, Any]
) -> None:
    (task_id,) = new_ids(1)
    template = Template(envelope())
    found = json.loads(template.text(template.values(task_id, tuple(args), kwargs)))
    assert json.loads(base64.b64decode(found["body"])) == [args, kwargs, {"chain": None}]
    assert found["headers"]["id"] == task_id
    assert found["properties"]["delivery_tag"] == task_id
    assert isinstance(found["properties"]["timestamp"], float)
    assert "argsrepr" not in found["properties"]


def test_a_compressed_message_is_not_templatable() -> None:
    with pytest.raises(NotTemplatableError):
        Template(envelope(compression="gzip"))


def test_event_lists_of_a_moment_are_joined() -> None:
    lists = [[{"n": 1}], [{"n": 2}, {"n": 3}], [{"n": 4}]]
    envelopes = [
        {**envelope(), "body": base64.b64encode(json.dumps(one).encode()).decode()} for one in lists
    ]
    found = json.loads(base64.b64decode(joined(envelopes)["body"]))
    assert [event["n"] for event in found] == [1, 2, 3, 4]


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
        ("cloche+redis://u:p%40w@h/", {"host": "h"}),
        ("cloche+redis://h/?socket_timeout=2.5", {"host": "h", "socket_timeout": 2.5}),
        ("cloche+rediss://h/1?ssl_cert_reqs=none", {"host": "h", "db": 1, "ssl_cert_reqs": "none"}),
        ("cloche+rediss://h/?ssl_check_hostname=false", {"host": "h", "ssl_check_hostname": False}),
        ("cloche+socket:///run/s?virtual_host=2", {}),
    ],
)
def test_what_a_url_says(url: str, expected: dict[str, Any]) -> None:
    assert transport_url.parameters(Connection(url)) == expected
    assert transport_url.uses_tls(Connection(url)) == ("rediss" in url)


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
