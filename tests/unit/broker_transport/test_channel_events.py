"""Events that wait for others, and the channel they wait on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub, get_event_loop, set_event_loop
from redis.exceptions import ConnectionError as RedisConnectionError

from cloche.broker.channel_events import ROUTING_KEY, EventBuffer
from cloche.broker.message import Envelope


class Loop(Hub):
    """A hub whose timers the test fires."""

    def __init__(self) -> None:
        super().__init__()
        self.planned: list[Callable[[], Any]] = []

    def call_later(self, _delay: float, callback: Callable[..., Any], *_: Any) -> None:
        self.planned.append(callback)


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = get_event_loop()
    made = Loop()
    set_event_loop(made)
    yield made
    set_event_loop(before)
    made.close()


def _events(*numbers: int) -> Envelope:
    body = base64.b64encode(json.dumps([{"n": number} for number in numbers]).encode()).decode()
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"hostname": "w@h"},
        "properties": {"body_encoding": "base64"},
    }


def _numbers(envelope: Envelope) -> list[int]:
    return [event["n"] for event in json.loads(base64.b64decode(envelope["body"]))]


def test_lists_of_one_moment_are_one_message(loop: Loop) -> None:
    sent: list[list[int]] = []
    buffer = EventBuffer(lambda _exchange, envelope, _key: sent.append(_numbers(envelope)))
    assert buffer.take("celeryev", _events(1, 2), ROUTING_KEY)
    assert buffer.take("celeryev", _events(3), ROUTING_KEY)
    (flush,) = loop.planned
    flush()
    assert sent == [[1, 2, 3]]


def test_they_wait_while_the_server_is_away(loop: Loop) -> None:
    sent: list[list[int]] = []
    away = [True]

    def publish(_exchange: str, envelope: Envelope, _key: str) -> None:
        if away[0]:
            raise RedisConnectionError("away")
        sent.append(_numbers(envelope))

    buffer = EventBuffer(publish)
    buffer.take("celeryev", _events(1), ROUTING_KEY)
    loop.planned.pop()()
    away[0] = False
    loop.planned.pop()()
    assert sent == [[1]]


def test_a_closed_channel_is_not_written_to(loop: Loop) -> None:
    def publish(*_: Any) -> None:
        raise AssertionError("the channel is closed")

    buffer = EventBuffer(publish)
    buffer.take("celeryev", _events(1), ROUTING_KEY)
    buffer.close()
    loop.planned.pop()()
    assert not buffer.take("celeryev", _events(2), ROUTING_KEY)
