"""``Connection.drain_events``, with which consumers without an event loop wait; late messages."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue
from kombu.asynchronous.hub import Hub
from kombu.common import eventloop

from cloche.broker import message
from cloche.broker.message import OWN, WAITED
from cloche.testing import BrokerProcess, wait_until
from tests.integration.transport.proxy import Proxy

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


def publish(broker: BrokerProcess, *bodies: object, **options: Any) -> None:
    with Connection(f"cloche+{broker.url}") as other:
        for body in bodies:
            other.Producer().publish(body, routing_key=QUEUE.name, declare=[QUEUE], **options)


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
        headers = {"task": "late", "id": "late", "eta": eta}
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
        QUEUE(other).declare()
    one = {
        "body": "1",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "due", "id": "due", "eta": eta},
        "properties": {},
        OWN: {WAITED: 1},  # it waited, by the server's clock
    }
    with broker.client() as client:
        client.lpush(QUEUE.name, message.encode(one))
    connection.drain_events(timeout=10)
    assert got[0].headers["eta"] <= datetime.now(UTC).isoformat()


def drained(connection: Connection, got: list[Any], calls: int) -> list[Any]:
    """What each of so many calls delivered."""
    found = []
    for _ in range(calls):
        before = len(got)
        connection.drain_events(timeout=5)
        found.append(got[before:])
    return found


def drain(connection: Connection) -> None:
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.5)


def unexpected(message: Any) -> None:
    pytest.fail(f"{message!r} was delivered")


def length(broker: BrokerProcess) -> int:
    with Connection(broker.url) as other:
        return int(QUEUE(other.default_channel).queue_declare().message_count)


@pytest.mark.parametrize("no_ack", [False, True])
@pytest.mark.parametrize("scheme", ["cloche+redis", "redis"])
def test_a_call_delivers_one_message_and_leaves_the_others_to_others(
    broker: BrokerProcess, scheme: str, no_ack: bool
) -> None:
    with broker.client() as client:
        client.flushall()
    publish(broker, *range(5), priority=9)
    got: list[Any] = []
    with Connection(f"{scheme}://127.0.0.1:{broker.port}/0") as connection:
        consumer = Consumer(
            connection, [QUEUE], callbacks=[lambda body, _: got.append(body)], no_ack=no_ack
        )
        consumer.consume()
        assert drained(connection, got, 2) == [[0], [1]]
        assert length(broker) == 3
        assert QUEUE(connection.channel()).get(no_ack=True).payload == 2
        # What is urgent comes first, however many there were before it.
        connection.Producer().publish("urgent", routing_key=QUEUE.name, priority=0)
        assert drained(connection, got, 3) == [["urgent"], [3], [4]]
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)


def test_the_limit_of_a_loop_counts_messages(broker: BrokerProcess, connection: Connection) -> None:
    publish(broker, *range(5))
    got = consume(connection)
    for _ in eventloop(connection, limit=3, timeout=5):
        pass
    assert got == [0, 1, 2]


@pytest.mark.parametrize("scheme", ["cloche+redis", "redis"])
def test_consumers_of_one_connection_take_turns_within_their_limits(
    broker: BrokerProcess, scheme: str
) -> None:
    with broker.client() as client:
        client.flushall()
    got: list[Any] = []
    with Connection(f"{scheme}://127.0.0.1:{broker.port}/0") as connection:
        for name in ("drained.one", "drained.two"):
            one = Consumer(
                connection.channel(), [Queue(name)], on_message=got.append, prefetch_count=1
            )
            one.consume()
            for number in range(2):
                connection.Producer().publish(number, routing_key=name)
        assert [len(found) for found in drained(connection, got, 2)] == [1, 1]
        with pytest.raises(TimeoutError):  # both have one they did not acknowledge
            connection.drain_events(timeout=0.2)
        got[0].ack()
        (last,) = drained(connection, got, 1)[0]
        assert last.delivery_info["routing_key"] == got[0].delivery_info["routing_key"]
        assert [found.payload for found in got] == [0, 0, 1]
        for found in got[1:]:
            found.ack()


@pytest.mark.parametrize("no_ack", [False, True])
def test_what_came_and_was_not_delivered_goes_back_as_it_came(
    broker: BrokerProcess, no_ack: bool
) -> None:
    with broker.client() as client:
        client.flushall()
    publish(broker, 1)
    with broker.client() as client:
        before = message.decode(client.lindex(QUEUE.name, 0).encode())
    with Connection(f"cloche+{broker.url}") as connection:
        consumer = Consumer(connection, [QUEUE], on_message=unexpected, no_ack=no_ack)
        consumer.consume()
        connection.transport.cycle.on_poll_start()  # asks
        wait_until(lambda: length(broker) == 0, "it was taken", 5)
        consumer.cancel()
    with broker.client() as client:
        after = message.decode(client.lindex(QUEUE.name, 0).encode())
    if no_ack:  # as kombu, which gives it back like one it has delivered
        assert after["body"] == before["body"]
    else:
        assert after == before


def test_the_answer_to_a_wait_is_no_message_once_all_is_cancelled(
    broker: BrokerProcess, connection: Connection
) -> None:
    got: list[Any] = []
    consumer = Consumer(connection, [QUEUE], callbacks=[lambda body, _: got.append(body)])
    consumer.consume()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)  # waits at the bell
    consumer.cancel()
    publish(broker, 1)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.5)
    assert got == []
    assert length(broker) == 1
    consumer.consume()
    assert drained(connection, got, 1) == [[1]]


def test_what_came_without_acknowledgement_stays_a_message_beside_other_consumers(
    broker: BrokerProcess, connection: Connection
) -> None:
    got: list[Any] = []
    first = Consumer(connection, [QUEUE], callbacks=[lambda body, _: got.append(body)], no_ack=True)
    first.consume()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)
    publish(broker, 1)  # the server pops it for whom it knows
    second = Consumer(connection, [Queue("drained.other")], on_message=unexpected)
    second.consume()
    assert drained(connection, got, 1) == [[1]]


def test_a_new_queue_is_read_within_kombus_second(broker: BrokerProcess) -> None:
    with broker.client() as client:
        client.flushall()
    publish(broker, 1)
    got: list[Any] = []
    with Connection(f"cloche+{broker.url}") as connection:
        consumer = Consumer(
            connection, [Queue("drained.other")], callbacks=[lambda body, _: got.append(body)]
        )
        consumer.consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        consumer.add_queue(QUEUE)
        consumer.consume()
        connection.drain_events(timeout=2.5)
    assert got == [1]


def test_a_loop_hears_nothing_of_answers_without_a_message(
    broker: BrokerProcess, connection: Connection
) -> None:
    got = consume(connection)
    hub = Hub()
    try:
        connection.register_with_event_loop(hub)
        connection.transport.cycle.on_poll_start()  # fetches from an empty queue
        (sock,) = connection.transport.cycle._chan_to_sock.values()
        assert select.select([sock], [], [], 5)[0]
        connection.transport.on_readable(sock.fileno())
        assert got == []
    finally:
        connection.release()
        hub.close()


def test_half_open_connections_of_no_ack_consumers_are_noticed(broker: BrokerProcess) -> None:
    with broker.client() as client:
        client.flushall()
    proxy = Proxy(broker.port)
    got: list[Any] = []
    options = {"health_check_interval": 1}
    try:
        with Connection(f"cloche+redis://127.0.0.1:{proxy.port}/0", transport_options=options) as c:
            Consumer(
                c, [QUEUE], callbacks=[lambda body, _: got.append(body)], no_ack=True
            ).consume()
            with pytest.raises(TimeoutError):
                c.drain_events(timeout=0.1)
            proxy.silence()
            time.sleep(c.transport.brpop_timeout + 0.2)  # the server answers in vain, and forgets
            publish(broker, 1)

            def taken() -> bool:
                drain(c)
                return bool(got)

            wait_until(taken, "it was taken by a new connection", 40)
        assert got == [1]
    finally:
        proxy.close()
