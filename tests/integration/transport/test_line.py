"""A publisher's own connection: one for all calls, none left behind."""

from __future__ import annotations

import base64
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from cloche.app.task import Task
from cloche.broker.connection import commands
from cloche.broker.connection.connection import SURE
from cloche.testing import wait_until
from tests.integration.transport.harness import Bench
from tests.integration.transport.proxy import Proxy


@pytest.fixture
def app(bench: Bench) -> Iterator[Celery]:
    made = publisher(bench.url)
    hang_up(made)  # kombu's pool has what an earlier test's application opened
    yield made
    hang_up(made)
    made.close()


def publisher(url: str) -> Celery:
    made = Celery("line", broker=url, task_cls=Task, set_as_current=False)
    made.conf.task_ignore_result = True

    @made.task(name="demo.note", shared=False)
    def note(x: int) -> None:
        raise AssertionError("only published")

    return made


def send(app: Celery, *numbers: int) -> None:
    for number in numbers:
        app.tasks["demo.note"].delay(number)


def arrived(bench: Bench) -> list[str]:
    """What the messages say they were called with, oldest first."""
    raw = reversed(bench.client.lrange("celery", 0, -1))
    return [json.loads(one)["headers"]["argsrepr"] for one in raw]


def connections(bench: Bench) -> set[str]:
    """The server's ids of connections that last ran a script, as publishing does."""
    return {one["id"] for one in bench.client.client_list() if one["cmd"] in ("eval", "evalsha")}


def hang_up(app: Celery) -> None:
    """Close the connection that its publishing uses; kombu keeps it for the whole process."""
    with app.producer_or_acquire() as producer:
        producer.connection.close()


def only_line(app: Celery) -> Any:
    """What a publisher with one thread sends over."""
    (line,) = app.tasks["demo.note"].__dict__["_cloche_quick"]._ready.outbox._lines._lent.get().idle
    return line


def test_all_calls_go_over_one_connection_which_closes_with_its_channel(
    bench: Bench, app: Celery
) -> None:
    before = len(bench.client.client_list())
    earlier = connections(bench)
    send(app, 0)
    first = connections(bench) - earlier
    assert len(first) == 1
    for number in range(1, 20):
        send(app, number)
        assert connections(bench) - earlier == first
    line: Any = only_line(app)
    hang_up(app)
    wait_until(lambda: len(bench.client.client_list()) <= before, "no connection left behind")
    send(app, 20)  # which may go over one of the pool's
    assert line._connection is None
    assert arrived(bench) == [f"({number},)" for number in range(21)]


def test_threads_publish_at_once_and_nothing_is_lost_or_repeated(bench: Bench, app: Celery) -> None:
    send(app, 0)
    started = [threading.Thread(target=send, args=(app, *range(n, n + 200))) for n in (1, 201, 401)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert sorted(arrived(bench)) == sorted(f"({number},)" for number in range(601))


def test_a_forked_process_publishes_on_a_connection_of_its_own(bench: Bench, app: Celery) -> None:
    earlier = connections(bench)
    send(app, 0)
    ours = connections(bench) - earlier
    forks = multiprocessing.get_context("fork")
    child = forks.Process(target=send, args=(app, *range(1, 101)))
    child.start()
    send(app, *range(101, 201))
    child.join(20)
    assert child.exitcode == 0
    assert sorted(arrived(bench)) == sorted(f"({number},)" for number in range(201))
    assert len(ours) <= 1  # 0: one of an earlier test's, as kombu's pools are the process's
    wait_until(lambda: connections(bench) - earlier == ours, "the child's is closed with it")


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(bench: Bench) -> None:
    with Proxy(bench.broker.port) as proxy:
        app = publisher(f"cloche+redis://127.0.0.1:{proxy.port}/0")
        app.conf.task_publish_retry = False  # whatever fails is told
        send(app, 0)
        line: Any = only_line(app)
        proxy.cut()
        wait_until(lambda: not line_is_open(line), "the end has arrived here")
        wait_until(lambda: time.monotonic() - line._used_at > SURE, "it is not used all the time")
        send(app, 1, 2)
        app.close()
    assert arrived(bench) == ["(0,)", "(1,)", "(2,)"]


def line_is_open(line: Any) -> bool:
    try:
        return not line._connection.can_read()
    except redis.exceptions.ConnectionError:
        return False


def test_an_event_that_nobody_may_publish_does_not_fail_its_message(bench: Bench) -> None:
    bench.client.acl_setuser(
        "mute", enabled=True, passwords=["+secret"], keys=["*"], channels=[], categories=["+@all"]
    )
    app = publisher(bench.url.replace("127.0.0.1", "mute:secret@127.0.0.1"))
    app.conf.task_send_sent_event = True
    send(app, 0, 1)
    quick: Any = app.tasks["demo.note"].__dict__["_cloche_quick"]._ready
    assert quick is not None
    assert quick.event is not None
    assert arrived(bench) == ["(0,)", "(1,)"]
    app.close()


def test_a_heartbeat_is_what_celery_sends(bench: Bench, app: Celery) -> None:
    stock = Celery("stock", broker=f"redis://127.0.0.1:{bench.broker.port}/0", set_as_current=False)
    heard: list[Any] = []
    client: Any = bench.client
    with client.pubsub() as listening:
        listening.psubscribe("*")
        wait_until(lambda: listening.get_message(timeout=1), "subscribed")
        for sender in (app, stock):
            with sender.connection_for_write() as connection:
                beat = sender.events.Dispatcher(connection)
                beat.send("worker-heartbeat", freq=5, active=1, processed=2)
        wait_until(lambda: collect(listening, heard) == 2, "both")
    ours, theirs = heard
    assert ours["channel"] == theirs["channel"] == "/0.celeryev/worker.heartbeat"
    assert without_own(ours["data"]) == without_own(theirs["data"])


def collect(listening: Any, heard: list[Any]) -> int:
    message = listening.get_message(timeout=0.1)
    if message is not None:
        heard.append(message)
    return len(heard)


def without_own(text: str) -> Any:
    envelope = json.loads(text)
    event = json.loads(base64.b64decode(envelope.pop("body")))
    envelope["properties"].pop("delivery_tag")
    own = ("timestamp", "clock", "pid")
    return envelope, {name: value for name, value in event.items() if name not in own}


def test_what_fell_silent_with_the_consumers_connection_is_not_waited_for(bench: Bench) -> None:
    """One time-out tells of all of them; each by itself would hold up the worker's loop."""
    with Proxy(bench.broker.port) as proxy:
        app = publisher(f"{bench.scheme}://127.0.0.1:{proxy.port}/0")
        app.conf.broker_transport_options = {"socket_timeout": 1}
        with app.connection_for_read() as connection:
            channel: Any = connection.channel()
            assert channel.lines.send_all([["PING"]]) == [b"PONG"]
            assert commands.send_all(channel.own, [["PING"]]) == [b"PONG"]
            channel.own.ping()
            proxy.silence()
            with pytest.raises(redis.exceptions.TimeoutError) as timeout:
                commands.send_all(channel.own, [["PING"]])
            channel.failed(timeout.value)
            assert channel.lines.send_all([["PING"]]) == [b"PONG"]
            assert channel.own.ping()
        app.close()
