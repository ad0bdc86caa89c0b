"""``Connection.drain_events``, with which consumers without an event loop wait; late messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from cloche.broker.message import DELAY
from cloche.testing import BrokerProcess

QUEUE = Queue("drained")
SLEEPY = {"polling_interval": 30}  # kombu sleeps so long after a poll in vain


@pytest.fixture
def connection(broker: BrokerProcess) -> Iterator[Connection]:
    with broker.client() as client:
        client.flushall()
    with Connection(f"cloche+{broker.url}", transport_options=SLEEPY) as found:
        yield found


def consume(connection: Connection) -> list[Any]:
    got: list[Any] = []
    Consumer(connection, [QUEUE], callbacks=[lambda body, _: got.append(body)]).consume()
    return got


def publish(broker: BrokerProcess, *bodies: object) -> None:
    with Connection(f"cloche+{broker.url}") as other:
        for body in bodies:
            other.Producer().publish(body, routing_key=QUEUE.name, declare=[QUEUE])


def test_an_empty_queue_is_waited_at_until_the_timeout(connection: Connection) -> None:
    consume(connection)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.5)
    assert time.monotonic() - start >= 0.5


def test_a_message_published_meanwhile_ends_the_wait_at_once(
    connection: Connection, broker: BrokerProcess
) -> None:
    got = consume(connection)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)  # found the queue empty, and waits at its bell
    later = threading.Timer(0.3, publish, (broker, 1))
    later.start()
    start = time.monotonic()
    connection.drain_events(timeout=20)
    later.join()
    assert got == [1]
    assert time.monotonic() - start < 10  # neither the timeout nor the polling interval


def test_every_return_has_delivered_something(
    connection: Connection, broker: BrokerProcess
) -> None:
    publish(broker, *range(300))
    got = consume(connection)
    connection.default_channel.basic_qos(0, 0, False)
    while len(got) < 300:
        before = len(got)
        connection.drain_events(timeout=5)
        assert len(got) > before
    assert sorted(got) == list(range(300))


def test_a_message_that_waited_keeps_its_eta(connection: Connection, broker: BrokerProcess) -> None:
    eta = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    got: list[Any] = []
    Consumer(connection, [QUEUE], on_message=got.append).consume()
    with Connection(f"cloche+{broker.url}") as other:
        headers = {"id": "late", "eta": eta}
        other.Producer().publish(1, routing_key=QUEUE.name, declare=[QUEUE], headers=headers)
    while not got:
        connection.drain_events(timeout=10)
    assert datetime.now(UTC).isoformat() >= eta
    assert got[0].headers["eta"] == eta


def test_the_eta_of_a_due_message_is_past_by_a_slow_clock_too(
    connection: Connection, broker: BrokerProcess
) -> None:
    eta = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    got: list[Any] = []
    Consumer(connection, [QUEUE], on_message=got.append).consume()
    with Connection(f"cloche+{broker.url}") as other:
        headers = {"id": "due", "eta": eta, DELAY: 1}  # it waited, by the server's clock
        other.Producer().publish(1, routing_key=QUEUE.name, declare=[QUEUE], headers=headers)
    connection.drain_events(timeout=10)
    assert got[0].headers["eta"] <= datetime.now(UTC).isoformat()
