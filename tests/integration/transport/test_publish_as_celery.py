"""Whatever changes while a process publishes: the next message is the one Celery would send.

Each change is made after ``delay`` has been used, so after there is a template.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import enum
import json
import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import celery
import kombu
import pytest
from celery import Celery, signals
from kombu.exceptions import EncodeError
from kombu.serialization import register, registry

from cloche.app.task import Task
from cloche.broker.keys import Keys
from cloche.broker.publish.bulk import publish_many
from tests.integration.transport.harness import Bench
from tests.integration.transport.test_publish_quick import (
    declare,
    messages,
    was_quick,
    without_own,
)

MonkeyPatch = pytest.MonkeyPatch
STOCK_APPLY_ASYNC = celery.Task.apply_async


@pytest.fixture
def app(bench: Bench) -> Iterator[Celery]:
    made = Celery("same", broker=bench.url, backend=bench.url, task_cls=Task, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def task(app: Celery) -> Any:
    return declare(app)


def _headers_of_send_task(task: Any, monkeypatch: MonkeyPatch) -> None:
    """As ddtrace and older sentry-sdk do."""
    stock, calls = celery.Celery.send_task, iter(range(100))

    def send_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stock(self, *args, **{**kwargs, "headers": {"trace": f"call-{next(calls)}"}})

    monkeypatch.setattr(celery.Celery, "send_task", send_task)


def _headers_of_apply_async(task: Any, monkeypatch: MonkeyPatch) -> None:
    """As sentry-sdk does."""
    calls = iter(range(100))

    def apply_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = {**kwargs, "headers": {"trace": f"call-{next(calls)}"}}
        return STOCK_APPLY_ASYNC(self, *args, **options)

    monkeypatch.setattr(celery.Task, "apply_async", apply_async)


def _headers_of_the_instance(task: Any, monkeypatch: MonkeyPatch) -> None:
    calls, send = iter(range(100)), task.app.send_task

    def send_task(*args: Any, **kwargs: Any) -> Any:
        return send(*args, **{**kwargs, "headers": {"trace": f"call-{next(calls)}"}})

    monkeypatch.setattr(task.app, "send_task", send_task, raising=False)


def _headers_of_publish(task: Any, monkeypatch: MonkeyPatch) -> None:
    """As tracers of kombu do."""
    stock, calls = kombu.Producer.publish, iter(range(100))

    def publish(self: Any, body: Any, **kwargs: Any) -> Any:
        headers = {**kwargs.pop("headers", {}), "trace": f"call-{next(calls)}"}
        return stock(self, body, headers=headers, **kwargs)

    monkeypatch.setattr(kombu.Producer, "publish", publish)


def _headers_of_the_protocol(task: Any, monkeypatch: MonkeyPatch) -> None:
    stock, calls = task.app.amqp.create_task_message, iter(range(100))

    def create_task_message(*args: Any, **kwargs: Any) -> Any:
        message = stock(*args, **kwargs)
        message.headers["trace"] = f"call-{next(calls)}"
        return message

    monkeypatch.setattr(task.app.amqp, "create_task_message", create_task_message)


def _headers_of_the_signal(task: Any, monkeypatch: MonkeyPatch) -> None:
    calls = iter(range(100))

    def receiver(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = f"call-{next(calls)}"

    monkeypatch.setattr(signals.before_task_publish, "receivers", [])
    signals.before_task_publish.connect(receiver, weak=False)


_CHANGES = [
    _headers_of_send_task,
    _headers_of_apply_async,
    _headers_of_the_instance,
    _headers_of_publish,
    _headers_of_the_protocol,
    _headers_of_the_signal,
]


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("many", [False, True], ids=["delay", "map_delay"])
def test_headers_that_somebody_adds_to_each_call_are_those_of_the_call(
    bench: Bench,
    task: Any,
    monkeypatch: MonkeyPatch,
    change: Callable[[Any, MonkeyPatch], None],
    many: bool,
) -> None:
    task.delay(0)
    assert was_quick(task)
    bench.client.flushall()
    with monkeypatch.context() as changed:
        change(task, changed)
        if many:
            task.map_delay([1, 2])
        else:
            task.delay(1)
            task.delay(2)
    found = [json.loads(one)["headers"].get("trace") for one in messages(bench)]
    assert found == ["call-0", "call-1"]


def _protocol(task: Any) -> None:
    task.app.conf.task_protocol = 1
    task.app.amqp.__dict__.pop("create_task_message", None)


def _compression(task: Any) -> None:
    task.app.conf.task_compression = "gzip"


def _priority(task: Any) -> None:
    task.app.conf.task_default_priority = 6


def _delivery_mode(task: Any) -> None:
    task.app.conf.task_default_delivery_mode = 1


def _exec_options(task: Any) -> None:
    task.priority, task._exec_options = 9, None


def _queue(task: Any) -> None:
    task.app.amqp.queues["celery"] = kombu.Queue("celery", routing_key="another")
    task.app.amqp.__dict__.pop("router", None)
    task.app.amqp.__dict__.pop("send_task_message", None)


def _shadow(task: Any) -> None:
    type(task).shadow_name = lambda self, args, kwargs, options: f"shadow of {args}"


def _expires(task: Any) -> None:
    task.expires, task._exec_options = datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC), None


def _defaults(task: Any) -> None:
    task.app.conf.add_defaults({"task_default_priority": 3})


@pytest.mark.parametrize(
    "change",
    [
        *(_protocol, _compression, _priority, _delivery_mode, _exec_options, _queue, _shadow),
        *(_expires, _defaults),
    ],
)
def test_what_changes_a_message_changes_the_next_one(
    bench: Bench, task: Any, change: Callable[[Any], None]
) -> None:
    task.delay(0)
    assert was_quick(task)
    bench.client.flushall()
    change(task)
    STOCK_APPLY_ASYNC(task, (1,))
    for _ in range(2):
        task.delay(1)
    task.map_delay([1])
    ((_, found),) = [(key, bench.client.lrange(key, 0, -1)) for key in _queues(bench)]
    stock, *others = [_alike(str(one)) for one in reversed(found)]
    assert others == [stock] * 3


def _queues(bench: Bench) -> list[str]:
    return [str(key) for key in bench.client.keys("celery*") if "meta" not in str(key)]


def _alike(text: str) -> Any:
    envelope = json.loads(text)
    envelope["properties"].pop("expiration", None)  # ms from now
    body = base64.b64decode(envelope["body"])
    if envelope["content-type"] == "application/json" and body.startswith(b"{"):  # protocol 1
        own = json.loads(body)
        own.pop("id")
        envelope["body"] = base64.b64encode(json.dumps(own).encode()).decode()
    elif "compression" in envelope["headers"]:
        envelope["body"] = ""
    return without_own(json.dumps(envelope))


class _Text(str):
    __slots__ = ()


class _Number(enum.IntEnum):
    ONE = 1


class _Speaks:
    def __json__(self) -> object:
        return {"spoken": 1}

    def __repr__(self) -> str:
        return "<speaks>"


_VALUES: list[Any] = [
    *(math.nan, math.inf, -math.inf, 2**200, -(2**63) - 1, 1e308, -0.0, True, None),
    *("caf\udce9.txt", "\x00\x7f\u2028", _Text("text"), b"bytes", b"\xff\xfe", bytearray(b"x")),
    *({1: "int", 2.5: "float", None: "none"}, {True: "bool"}, OrderedDict(b=1, a=2), _Number.ONE),
    *(decimal.Decimal("1.10"), datetime.date(2026, 1, 2), datetime.time(1, 2), _Speaks()),
    *(datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC), uuid.UUID(int=7)),
    *((1, (2, [3])), {"__type__": "date", "__value__": "2026-01-02"}, ["%s", "%(x)s", "%"]),
    *("@@cloche-id@@", {"a": {1, 2}}, object, 10**5000, {(1, 2): 3}),
]  # fmt: skip


@pytest.mark.parametrize("value", _VALUES, ids=range(len(_VALUES)))
def test_a_value_goes_or_is_refused_as_with_celery(bench: Bench, task: Any, value: Any) -> None:
    """The same text in the message, or the same exception: at the first call and later ones."""

    def outcome(call: Callable[[], object]) -> object:
        bench.client.flushall()
        try:
            call()
        except Exception as error:
            assert messages(bench) == []
            return type(error), str(error)
        return [without_own(one) for one in messages(bench)]

    stock = outcome(lambda: STOCK_APPLY_ASYNC(task, (value,), {"y": value}))
    assert "_cloche_quick" not in task.__dict__
    assert outcome(lambda: task.delay(value, y=value)) == stock
    items = [{"x": value, "y": value}]
    by_name = outcome(lambda: STOCK_APPLY_ASYNC(task, (), items[0]))
    assert outcome(lambda: task.starmap_delay(items)) == by_name
    task.delay("plain")
    assert was_quick(task)
    for _ in range(2):
        assert outcome(lambda: task.delay(value, y=value)) == stock


def test_a_circular_value_is_refused_as_with_celery(task: Any) -> None:
    circle: list[Any] = []
    circle.append(circle)
    task.delay(1)
    with pytest.raises(EncodeError) as stock:
        STOCK_APPLY_ASYNC(task, (circle,))
    with pytest.raises(EncodeError) as ours:
        task.delay(circle)
    assert str(ours.value) == str(stock.value)


def test_many_are_published_up_to_the_one_that_cannot_be(bench: Bench, task: Any) -> None:
    """As a loop of ``delay`` would."""
    with pytest.raises(EncodeError):
        task.map_delay([1, 2, object(), 4])
    assert len(messages(bench)) == 2


@contextmanager
def _serializer(name: str, encode: Callable[[Any], str]) -> Iterator[None]:
    kept = registry._encoders[name]
    register(name, encode, json.loads, "application/json", "utf-8")
    yield
    registry._encoders[name] = kept


def test_a_serializer_that_is_registered_later_is_used(bench: Bench, task: Any) -> None:
    task.delay(0)
    assert was_quick(task)
    with _serializer("json", lambda value: json.dumps(value, indent=1)):
        task.delay(1)
    assert b"\n" in base64.b64decode(json.loads(messages(bench)[-1])["body"])


def test_a_task_that_sends_itself_hears_of_each_call(bench: Bench, app: Celery) -> None:
    heard: list[Any] = []

    class Own(Task):
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            heard.append((args, options.get("task_id")))
            return super().apply_async(args, kwargs, headers={"nth": len(heard)}, **options)

    task = declare(app, base=Own)
    task.delay(1)
    task.map_delay([2, 3])
    publish_many(app, [task.s(4), task.s(5)])
    assert heard == [((number,), None) for number in range(1, 6)]
    assert [json.loads(one)["headers"]["nth"] for one in messages(bench)] == [1, 2, 3, 4, 5]


def test_eager_and_back(bench: Bench, app: Celery) -> None:
    @app.task(name="demo.double", shared=False)
    def double(x: int) -> int:
        return 2 * x

    double.delay(1)
    app.conf.task_always_eager = True
    assert double.delay(2).get() == 4
    app.conf.task_always_eager = False
    double.delay(3)
    assert len(messages(bench)) == 2


def test_an_own_result_class_is_returned(bench: Bench, app: Celery) -> None:
    class Result(celery.result.AsyncResult):
        pass

    class Own(Task):
        abstract = True

        def AsyncResult(self, task_id: str, **_: Any) -> Any:
            return Result(task_id, app=self.app)

    task = declare(app, base=Own)
    assert all(type(task.delay(number)) is Result for number in range(3))


def test_the_ids_an_option_names_are_used(bench: Bench, task: Any) -> None:
    assert task.map_delay([1, 2], task_id="mine").ids == ["mine", "mine"]
    assert {json.loads(one)["headers"]["id"] for one in messages(bench)} == {"mine"}


def test_each_of_many_expires_in_its_own_time(bench: Bench, task: Any) -> None:
    task.map_delay([1, 2], expires=60)
    first, second = (json.loads(one)["headers"]["expires"] for one in messages(bench))
    assert first < second


def test_many_are_due_when_celery_says(bench: Bench, task: Any) -> None:
    app = task.app
    app.conf.timezone = "Asia/Tokyo"
    task.map_delay([1, 2], countdown=600)
    publish_many(app, [task.s(3).set(countdown=600)])
    moment = datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC)
    task.map_delay([4], eta=moment)
    STOCK_APPLY_ASYNC(task, (5,), countdown=600)
    STOCK_APPLY_ASYNC(task, (6,), eta=moment)
    kept = bench.client.hvals(Keys().delayed_messages("celery"))
    etas = {}
    for text in kept:
        envelope = json.loads(str(text).partition(":")[2])
        ((number,), _, _) = json.loads(base64.b64decode(envelope["body"]))
        etas[number] = envelope["headers"]["eta"]
    assert etas[4] == etas[6] == "2040-01-01T00:00:00+00:00"
    assert all(etas[number].endswith("+09:00") for number in (1, 2, 3, 5))
    naive = moment.replace(tzinfo=None)
    task.map_delay([7], eta=naive)
    STOCK_APPLY_ASYNC(task, (7,), eta=naive)
    ours, stock = messages(bench)
    assert without_own(ours) == without_own(stock)


def test_what_a_task_publishes_in_bulk_are_its_children(bench: Bench, task: Any) -> None:
    @task.app.task(name="demo.parent", bind=True, shared=False)
    def parent(self: Any) -> list[str]:
        ids = task.map_delay([1, 2]).ids
        assert [one.id for one in self.request.children] == ids
        return list(ids)

    parent.app.set_current()
    celery._state._task_stack.push(parent)
    parent.push_request(id="parent", root_id="root", called_directly=False, children=[])
    try:
        parent.run()
    finally:
        parent.pop_request()
        celery._state._task_stack.pop()
    assert {json.loads(one)["headers"]["root_id"] for one in messages(bench)} == {"root"}
