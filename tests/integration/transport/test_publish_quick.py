"""``delay()`` from a template: the same messages as Celery's, or Celery's own way."""

from __future__ import annotations

import base64
import gc
import json
import threading
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from celery import Celery, signals
from celery._state import _task_stack
from kombu.exceptions import OperationalError

from cloche.app import harden
from cloche.app.task import Task
from cloche.settings import Settings
from cloche.testing import wait_until
from tests.integration.transport.harness import Bench
from tests.integration.transport.proxy import Proxy

#: What differs from message to message.
_OWN = {"id", "root_id", "correlation_id", "delivery_tag", "timestamp", "clock", "uuid", "at"}


@pytest.fixture
def app(bench: Bench) -> Iterator[Celery]:
    made = Celery("quick", broker=bench.url, backend=bench.url, task_cls=Task, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def task(app: Celery) -> Any:
    return declare(app)


def declare(app: Celery, **options: Any) -> Any:
    @app.task(name="demo.add", shared=False, **options)
    def add(x: object, y: object = 0) -> None:
        raise AssertionError("only published")

    return app.tasks["demo.add"]


def by_celery(task: Any, *args: object, **kwargs: object) -> Any:
    return celery.Task.apply_async(task, args, kwargs)


def messages(bench: Bench, queue: str = "celery") -> list[str]:
    """Oldest first."""
    return [str(raw) for raw in reversed(bench.client.lrange(queue, 0, -1))]


def without_own(text: str) -> str:
    """The text, byte for byte, but for what is each message's own and the body's encoding."""

    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: "…" if k in _OWN else blank(v) for k, v in value.items()}
        return value

    envelope = json.loads(text)
    body = base64.b64decode(envelope["body"]).decode()
    if body.startswith("{"):  # an event
        body = json.dumps(blank(json.loads(body)))
    return json.dumps(blank(envelope) | {"body": body})


def was_quick(task: Any) -> bool:
    """Whether a template of this task is in use: messages look the same either way."""
    publisher = task.__dict__.get("_cloche_quick")
    return publisher is not None and publisher._ready is not None


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {"y": "two"}),
        ((), {"x": None}),
        ((1, 2), {}),
        (('it\'s "quoted" \\ 🔔 \n', [1, {"a": (2, 3.5)}]), {}),
        (("x" * 3000,), {"y": {"deep": {"deeper": {"deepest": {"end": 1}}}}}),
        (("@@cloche-id@@",), {"y": "@@cloche-reply@@"}),
    ],
)
def test_a_quick_message_is_celerys_byte_for_byte_ids_aside(
    bench: Bench, task: Any, args: tuple[object, ...], kwargs: dict[str, Any]
) -> None:
    by_celery(task, *args, **kwargs)
    results = [task.delay(*args, **kwargs) for _ in range(2)]
    assert was_quick(task)
    stock, *quick = messages(bench)
    assert [without_own(one) for one in quick] == [without_own(stock)] * 2
    found = [json.loads(one) for one in quick]
    assert [one["headers"]["id"] for one in found] == [one.id for one in results]
    assert all(one["properties"]["correlation_id"] == one["headers"]["id"] for one in found)


def test_options_of_the_task_and_its_routes_are_in_the_message(bench: Bench, app: Celery) -> None:
    app.conf.task_routes = {"demo.*": {"queue": "slow", "priority": 3}}
    task = declare(app, time_limit=9, soft_time_limit=8, ignore_result=True)
    by_celery(task, 1)
    result = task.delay(1)
    assert was_quick(task)
    stock, quick = messages(bench, "slow\x06\x163")
    assert without_own(quick) == without_own(stock)
    assert result.ignored is True


def test_a_change_of_the_task_or_of_the_routes_is_seen_at_once(bench: Bench, task: Any) -> None:
    task.delay(1)
    task.ignore_result = True
    task.delay(2)
    task.app.conf.task_routes = {"demo.*": {"queue": "other"}}
    task.app.amqp.flush_routes()
    task.app.amqp.__dict__.pop("router", None)
    task.delay(3)
    assert [json.loads(one)["headers"]["ignore_result"] for one in messages(bench)] == [False, True]
    assert len(messages(bench, "other")) == 1


def test_the_sent_event_goes_with_the_message_as_celery_sends_it(bench: Bench, task: Any) -> None:
    task.app.conf.task_send_sent_event = True
    with bench.client.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
        heard.psubscribe("*")
        by_celery(task, 1, y="two")
        result = task.delay(1, y="two")
        assert was_quick(task)
        events: list[str] = []

        def both() -> bool:
            found = heard.get_message(timeout=0.1)
            if found is not None and "celeryev" in str(found["channel"]):
                events.append(str(found["data"]))
            return len(events) == 2

        wait_until(both, "two events")
    stock, quick = events
    assert without_own(quick) == without_own(stock)
    first, second = (json.loads(base64.b64decode(json.loads(one)["body"])) for one in events)
    assert (second["uuid"], second["root_id"]) == (result.id, result.id)
    assert second["clock"] > first["clock"]
    assert second["timestamp"] > first["timestamp"]


def test_each_thread_is_answered_on_its_own_queue(bench: Bench, task: Any) -> None:
    task.delay(1)
    other = threading.Thread(target=task.delay, args=(2,))
    other.start()
    other.join()
    here, there = (json.loads(one)["properties"]["reply_to"] for one in messages(bench))
    assert here == task.app.thread_oid
    assert here != there


def test_who_listens_to_publishing_hears_of_each(bench: Bench, task: Any) -> None:
    heard: list[str] = []

    def listen(headers: dict[str, Any], **_: Any) -> None:
        heard.append(headers["id"])

    task.delay(0)
    for signal in (signals.before_task_publish, signals.after_task_publish):
        signal.connect(listen)
        try:
            result = task.delay(1)
        finally:
            signal.disconnect(listen)
        assert heard.pop() == result.id
        assert not heard


def test_calls_within_a_task_tell_of_their_parent(bench: Bench, task: Any) -> None:
    task.delay(0)

    @task.app.task(name="demo.parent", shared=False, bind=True)
    def parent(self: Any) -> None:
        _task_stack.push(self)  # what Celery's tracer does in a worker
        try:
            task.delay(1)
        finally:
            _task_stack.pop()

    running = task.app.tasks["demo.parent"]
    running.push_request(id="parent-id", root_id="root-id", called_directly=False)
    try:
        running.run()
    finally:
        running.pop_request()
    headers = json.loads(messages(bench)[1])["headers"]
    assert (headers["parent_id"], headers["root_id"]) == ("parent-id", "root-id")


def test_eager_applications_run_the_task_at_once(bench: Bench, app: Celery) -> None:
    @app.task(name="demo.double", shared=False)
    def double(x: int) -> int:
        return 2 * x

    app.conf.task_always_eager = True
    assert double.delay(4).get() == 8
    assert not bench.client.exists("celery")


def test_wrong_arguments_are_refused(bench: Bench, task: Any) -> None:
    task.delay(1)
    with pytest.raises(TypeError):
        task.delay(nonsense=1)
    assert len(messages(bench)) == 1


def test_an_override_of_apply_async_runs_once_for_each_call(bench: Bench, app: Celery) -> None:
    calls: list[tuple[object, ...]] = []

    class Counting(Task):
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            calls.append(args)
            return super().apply_async(args, kwargs, **options)

    task = declare(app, base=Counting)
    for number in range(3):
        task.delay(number)
    assert calls == [(0,), (1,), (2,)]
    assert len(messages(bench)) == 3


def test_tasks_that_expire_or_name_themselves_are_left_to_celery(bench: Bench, app: Celery) -> None:
    def named(task: Any, args: Any, kwargs: Any, options: Any) -> str:
        return f"add {args[0]}"

    expiring = declare(app, expires=60)
    expiring.delay(1)
    assert not was_quick(expiring)

    @app.task(name="demo.named", shadow_name=named, shared=False)
    def shadowed(x: int) -> None: ...

    for number in range(2):
        shadowed.delay(number)
    assert [json.loads(one)["headers"]["shadow"] for one in messages(bench)[1:]] == [
        "add 0",
        "add 1",
    ]


def test_routes_that_look_at_arguments_see_each_call(bench: Bench, app: Celery) -> None:
    def route(name: str, args: Any, kwargs: Any, options: Any, **_: Any) -> dict[str, str]:
        return {"queue": f"shard-{args[0]}"}

    app.conf.task_routes = (route,)
    task = declare(app)
    for number in range(2):
        task.delay(number)
    assert (len(messages(bench, "shard-0")), len(messages(bench, "shard-1"))) == (1, 1)


def test_a_cut_connection_is_made_good_by_celerys_retry_policy(bench: Bench) -> None:
    with Proxy(bench.broker.port) as proxy:
        url = f"cloche+redis://127.0.0.1:{proxy.port}/0"
        app = Celery(broker=url, task_cls=Task, set_as_current=False)
        task = declare(app, ignore_result=True)
        ids = []
        for number in range(6):
            if number in (2, 4):
                proxy.cut()
            ids.append(task.delay(number).id)
        app.close()
    found = [json.loads(one)["headers"]["id"] for one in messages(bench)]
    assert set(found) == set(ids)


def test_without_a_retry_policy_the_error_is_kombus(bench: Bench) -> None:
    with Proxy(bench.broker.port) as proxy:
        url = f"cloche+redis://127.0.0.1:{proxy.port}/0"
        app = Celery(broker=url, task_cls=Task, set_as_current=False)
        app.conf.task_publish_retry = False
        task = declare(app, ignore_result=True)
        task.delay(0)
        proxy.close()
        with pytest.raises(OperationalError):
            task.delay(1)
        app.close()


def test_a_hardened_application_publishes_quickly_too(bench: Bench) -> None:
    app = Celery("plain", set_as_current=False)
    settings = {"broker": {"url": bench.url, "transport": "cloche"}}
    harden(app, Settings.model_validate(settings))
    task = declare(app)
    by_celery(task, 1)
    task.delay(1)
    assert was_quick(task)
    stock, quick = messages(bench)
    assert without_own(quick) == without_own(stock)
    app.close()


def test_a_class_with_an_apply_async_of_its_own_keeps_it(bench: Bench) -> None:
    class Mine(celery.Task):
        abstract = True

        def apply_async(self, *args: Any, **options: Any) -> Any:
            return "mine"

    app = Celery("own", task_cls=Mine, set_as_current=False)
    harden(app, Settings.model_validate({"broker": {"url": bench.url}}))
    assert declare(app).delay(1) == "mine"
    app.close()


def test_a_publisher_that_listens_for_results_has_subscribed_to_each(
    bench: Bench, task: Any
) -> None:
    assert task.app.conf.result_backend_transport_options == {}  # by default it does
    result = task.delay(1)
    assert was_quick(task)
    channel = f"celery-task-meta-{result.id}"
    wait_until(lambda: bench.client.pubsub_numsub(channel)[0][1] == 1, "subscribed")


def test_a_result_that_outlives_its_subscription_does_not_connect_to_end_it(
    bench: Bench, task: Any
) -> None:
    result = task.delay(1)
    consumer = task.backend.result_consumer
    assert consumer.subscribed_to
    consumer._pubsub.reset()  # as when the garbage collector takes all of it at once
    del result
    gc.collect()
    assert consumer._pubsub.connection is None
    assert not consumer.subscribed_to
