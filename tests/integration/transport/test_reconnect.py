"""What becomes of deliveries when kombu gives a connection up, and of cut ones."""

from __future__ import annotations

import base64
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue

from cloche.broker.channel import Channel
from cloche.testing import BrokerProcess, wait_until

OPTIONS = {"lease": 1.2}


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[redis.Redis]:
    with broker.client() as found:
        found.flushall()
        yield found


@pytest.fixture
def connect(broker: BrokerProcess) -> Iterator[Callable[[], Connection]]:
    opened: list[Connection] = []

    def new() -> Connection:
        url = f"cloche+redis://127.0.0.1:{broker.port}/0"
        opened.append(Connection(url, transport_options=OPTIONS))
        return opened[-1]

    yield new
    for connection in opened:
        connection.release()


def fetch(connection: Connection, count: int) -> list[Any]:
    """Publish and receive ``count`` messages."""
    queue = Queue("things")
    producer = connection.Producer()
    for number in range(count):
        producer.publish({"number": number}, routing_key="things", declare=[queue])
    got: list[Any] = []
    consumer = Consumer(connection.default_channel, [queue], on_message=got.append)
    consumer.qos(prefetch_count=count)
    consumer.consume()
    while len(got) < count:
        connection.drain_events(timeout=5)
    return got


def inflight(client: redis.Redis) -> int:
    return sum(int(client.hlen(key)) for key in client.keys("cloche:inflight:*"))


def test_what_somebody_still_has_stays_leased_and_can_be_acknowledged(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    running, dropped = fetch(connection, 2)
    connection.collect()  # what Celery does after a connection error
    assert inflight(client) == 2
    assert client.llen("things") == 0
    del dropped
    gc.collect()
    wait_until(lambda: client.llen("things") == 1, "the dropped one went back", 30)
    assert inflight(client) == 1
    running.ack()
    wait_until(lambda: inflight(client) == 0, "the running one was settled", 30)
    assert client.llen("things") == 1


def test_a_running_one_can_be_requeued_after_its_connection_broke(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    (running,) = fetch(connection, 1)
    connection.collect()
    running.requeue()
    assert client.llen("things") == 1
    assert inflight(client) == 0


def test_the_next_connection_continues_the_same_lease(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    first = connect()
    (kept,) = fetch(first, 1)
    first.collect()
    second = connect()
    (another,) = fetch(second, 1)
    assert kept.delivery_tag.split("/")[0] == another.delivery_tag.split("/")[0]
    assert client.zcard("cloche:leases") == 1
    kept.ack()
    another.ack()
    wait_until(lambda: inflight(client) == 0, "both settled", 30)


def test_a_message_whose_delivery_was_cut_goes_back(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    (kept,) = fetch(connection, 1)
    channel = connection.default_channel
    assert isinstance(channel, Channel)
    # The server moved it, the reply never came: a field nobody here knows.
    client.hset(channel.own_lease.inflight, "77/things", "cut")
    wait_until(lambda: client.lrange("things", 0, -1) == ["cut"], "it went back", 10)
    assert inflight(client) == 1
    kept.ack()


def test_closing_in_good_order_gives_back_and_ends_the_lease(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    got = fetch(connection, 3)
    got[1].ack()
    connection.release()
    assert client.llen("things") == 2
    assert not client.exists("cloche:leases")
    assert not client.keys("cloche:inflight:*")
    assert '"redelivered": true' in client.lrange("things", -1, -1)[0]


def test_rejecting_with_requeue_puts_it_to_the_back_as_kombu_does(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    first, second, third = fetch(connection, 3)
    connection.Producer().publish({"number": 3}, routing_key="things")
    third.requeue()
    first.requeue()
    second.ack()
    connection.release()
    bodies = [json.loads(raw)["body"] for raw in reversed(client.lrange("things", 0, -1))]
    assert [json.loads(base64.b64decode(body)) for body in bodies] == [
        {"number": 3},
        {"number": 2},
        {"number": 0},
    ]


def test_a_priority_queue_is_fetched_most_urgent_first(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    producer = connection.Producer()
    for priority in (9, 0, 5, 3, 0):
        producer.publish({"p": priority}, routing_key="things", priority=priority)
    got: list[Any] = []
    consumer = Consumer(connection.default_channel, [Queue("things")], on_message=got.append)
    consumer.consume()
    while len(got) < 5:
        connection.drain_events(timeout=5)
    # 3 and 5 share a step (kombu's priority_steps: 0, 3, 6, 9), where the first comes first.
    assert [one.payload["p"] for one in got] == [0, 0, 5, 3, 9]


def test_queues_share_a_fetch_fairly(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    producer = connection.Producer()
    queues = [Queue("busy"), Queue("calm")]
    for queue, count in ((queues[0], 50), (queues[1], 3)):
        for number in range(count):
            producer.publish({"n": number}, routing_key=queue.name, declare=[queue])
    got: list[Any] = []
    consumer = Consumer(connection.default_channel, queues, on_message=got.append)
    consumer.qos(prefetch_count=10)
    consumer.consume()
    while len(got) < 10:
        connection.drain_events(timeout=5)
    names = [one.delivery_info["routing_key"] for one in got]
    assert names.count("calm") == 3
    assert names.count("busy") == 7


def test_what_nobody_can_read_goes_back_as_it_was(
    connect: Callable[[], Connection], client: redis.Redis
) -> None:
    connection = connect()
    (kept,) = fetch(connection, 1)
    channel = connection.default_channel
    assert isinstance(channel, Channel)
    client.hset(channel.own_lease.inflight, "78/things", "{junk")
    channel.own_lease.answered(None, ["78/things"])
    channel.give_back([channel.tag("78/things"), kept.delivery_tag])
    assert client.lindex("things", 0) == "{junk"  # behind what was fetched before it
    assert client.llen("things") == 2
    assert inflight(client) == 0
