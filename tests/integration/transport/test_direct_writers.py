"""Results and events written from a loop are, to the byte, what Celery's own code writes."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

import pytest
from celery import Celery, states
from celery.app.task import Context

from cloche.broker.events import EventWriter
from cloche.testing import wait_until


@pytest.fixture
def app(broker_url: str) -> Any:
    with Celery(broker=f"cloche+{broker_url}", backend=f"cloche+{broker_url}") as found:
        yield found


def _store(app: Celery, *stores: tuple[Any, ...], request: Any = None) -> None:
    async def work() -> None:
        writer = app.backend.writer()
        try:
            await asyncio.gather(*(writer.store(*one, request=request) for one in stores))
        finally:
            await writer.stop()

    asyncio.run(work())


def _stored(app: Celery, task_id: str) -> str:
    raw: bytes = app.backend.get(app.backend.get_key_for_task(task_id))
    text = re.sub(r'"date_done": "[^"]*"', '"date_done": ""', raw.decode())
    return text.replace(task_id, "ID")


@pytest.mark.parametrize(
    "result", [None, True, 7, -(2**70), 'é\n"', 1.5, [1, {"a": None}], {"b": [2]}, float("nan")]
)
def test_a_success_has_the_bytes_of_the_backend(app: Celery, result: Any) -> None:
    request = Context({"group": "g", "parent_id": "p", "id": "x"})
    app.backend.store_result("bytes-1", result, states.SUCCESS, request=request)
    _store(app, ("bytes-2", result, states.SUCCESS), request=request)
    assert _stored(app, "bytes-2") == _stored(app, "bytes-1")
    for name in ("bytes-1", "bytes-2"):
        app.backend.forget(name)


def test_a_success_stays_whatever_comes_after_and_other_states_do_not(app: Celery) -> None:
    _store(app, ("stays-1", 1, states.SUCCESS), ("stays-2", {"pid": 1}, states.STARTED))
    _store(app, ("stays-1", ValueError("late"), states.FAILURE), ("stays-2", 2, states.SUCCESS))
    assert [app.AsyncResult(name).result for name in ("stays-1", "stays-2")] == [1, 2]


def test_a_server_that_forgot_the_script_is_told_it_again(app: Celery) -> None:
    _store(app, ("again", {"pid": 1}, states.STARTED))
    app.backend.client.script_flush()
    _store(app, ("again", 3, states.SUCCESS))
    assert app.AsyncResult("again").result == 3


def test_events_arrive_at_celerys_receiver_in_order(app: Celery) -> None:
    heard: list[dict[str, Any]] = []
    connection = app.connection_for_read()
    receiver = app.events.Receiver(connection, handlers={"task-received": heard.append})
    listener = threading.Thread(
        target=receiver.capture, kwargs={"wakeup": False, "limit": None}, daemon=True
    )
    listener.start()
    dispatcher = app.events.Dispatcher(app.connection_for_write(), hostname="me@here")
    channel: Any = connection.default_channel
    wait_until(lambda: channel.client.pubsub_numpat(), "the receiver to listen")

    async def work() -> None:
        writer = EventWriter(dispatcher, asyncio.get_running_loop())
        for number in range(3000):
            writer.add({"type": "task-received", "uuid": str(number), "clock": number})
        await asyncio.sleep(0.1)
        await writer.stop()

    asyncio.run(work())
    wait_until(lambda: len(heard) == 3000, "all events")
    assert [event["uuid"] for event in heard] == [str(number) for number in range(3000)]
    receiver.should_stop = True
    listener.join(10)
    dispatcher.close()
    connection.close()
    assert json.dumps(heard[0]["clock"])


def test_events_go_to_each_topic_of_the_channel(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``sentinel_fanout_compat`` those of kombu before 5.4 are among them."""
    dispatcher = app.events.Dispatcher(app.connection_for_write(), hostname="me@here")
    channel: Any = dispatcher.connection.default_channel
    topics = ["now/task.multi", "before/task.multi"]
    monkeypatch.setattr(channel, "_get_publish_topics", lambda exchange, routing_key: topics)
    with channel.own.pubsub() as heard:
        heard.subscribe(*topics)
        assert [heard.get_message(timeout=10)["type"] for _ in topics] == ["subscribe"] * 2

        async def work() -> None:
            writer = EventWriter(dispatcher, asyncio.get_running_loop())
            writer.add({"type": "task-received", "uuid": "x"})
            await writer.stop()

        asyncio.run(work())
        told = [heard.get_message(timeout=10) for _ in topics]
    assert {message["channel"].decode() for message in told} == set(topics)
    assert told[0]["data"] == told[1]["data"], "one tag: who hears both knows it for one message"
    dispatcher.close()
