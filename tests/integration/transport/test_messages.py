"""A task sees of its message what it sees with stock Celery, whoever sent it and however.

The same messages, to a stock worker and to ours: what comes back is compared word for word.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import redis
from celery import Celery, chord
from celery.exceptions import InvalidTaskError, TaskRevokedError, WorkerLostError
from kombu.exceptions import ContentDisallowed, DecodeError

from cloche.broker import message
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.keys import Keys
from cloche.testing import wait_until
from tests.integration.aio_pool.harness import Worker, worker
from tests.integration.aio_pool.test_same_as_prefork import Events

pytestmark = pytest.mark.timeout(120)

MODULE = "tests.integration.transport.seen_jobs"
ACCEPT = ["json", "pickle", "yaml", "application/text"]
#: Celery does not let root accept pickle, unless told to.
ROOT: dict[str, Any] = {"environ": {"C_FORCE_ROOT": "1"}}
PAST = "2020-01-01T00:00:00"
#: Names of the transport's own bookkeeping, now and in earlier versions: a user's headers here.
OURS = {"x-delay": 60_000, "x-delivery-count": 99, "x-deaths": [1] * 99, "cloche": {"deaths": [1]}}


def envelope(queue: str, task_id: str, body: Any = ([1], {}, {}), **headers: Any) -> dict[str, Any]:
    """A message of protocol 2, as a producer in another language may write it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {
        "body": base64.b64encode(text).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "see", "id": task_id, **headers},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "tag",
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def without(name: str) -> Callable[..., dict[str, Any]]:
    def made(queue: str, task_id: str) -> dict[str, Any]:
        found = envelope(queue, task_id)
        del found[name]
        return found

    return made


def with_(**fields: Any) -> Callable[..., dict[str, Any]]:
    """With these in its properties."""

    def made(queue: str, task_id: str) -> dict[str, Any]:
        found = envelope(queue, task_id)
        found["properties"].update(fields)
        return found

    return made


def headed(*body: Any, **headers: Any) -> Callable[..., dict[str, Any]]:
    return lambda queue, task_id: envelope(queue, task_id, *body, **headers)


def protocol_1(headers: Any, **fields: Any) -> Callable[..., dict[str, Any]]:
    def made(queue: str, task_id: str) -> dict[str, Any]:
        body = {"task": "see", "id": task_id, "args": [1], "kwargs": {"a": 2}, **fields}
        return {**envelope(queue, task_id, body), "headers": headers}

    return made


def texted(queue: str, task_id: str) -> dict[str, Any]:
    """Its body as text instead of base64."""
    found = envelope(queue, task_id)
    del found["properties"]["body_encoding"]
    return {**found, "body": '[["\\ud83d\\ude00 é"], {}, {}]'}


def utf_16(queue: str, task_id: str) -> dict[str, Any]:
    found = envelope(queue, task_id, '[["é"], {}, {}]'.encode("utf-16"))
    return {**found, "content-encoding": "utf-16"}


def no_utf_8(queue: str, task_id: str) -> bytes:
    return json.dumps(envelope(queue, task_id, note="@")).encode().replace(b"@", b"\xff")


RAW: dict[str, Callable[..., Any]] = {
    "few headers": headed(),
    "headers named like our bookkeeping": headed(**OURS, trace="1"),
    "a header named eta, past": headed(eta=PAST + "Z"),
    "an eta without a time zone": headed(eta=PAST),
    "long integers": headed(([2**70], {}, {}), n=2**70, deep={"m": [-(2**64)]}, most=2**63 - 1),
    "NaN and Infinity": headed(([float("nan")], {}, {}), n=float("inf")),
    "lone surrogates": headed((["\udce9"], {"\udce9": 1}, {}), name="caf\udce9"),
    "revived types": headed(at={"__type__": "datetime", "__value__": PAST}),
    "bytes that are no UTF-8": no_utf_8,
    "properties of the producer's own": with_(timestamp=5, priority=3, x=[1]),
    "a header nobody knows": headed(lang="c", unknown=None),
    "no content-encoding": without("content-encoding"),
    "a text for a body": texted,
    "protocol 1": protocol_1({}),
    "protocol 1, null headers": protocol_1(None, retries=1),
    "protocol 1, headers of its own": protocol_1({"trace": "1", "x-deaths": 99}, eta=PAST),
}

SENT: dict[str, dict[str, Any]] = {
    "nothing special": {},
    "headers": {"headers": {**OURS, "trace": "1"}},
    "properties": {"timestamp": 5, "priority": 4},
    "lone surrogates": {"args": ("\udce9",), "headers": {"name": "\udce9"}},
    "a countdown": {"countdown": 0.2},
    "a countdown of nothing": {"countdown": 0.0},
    "an eta of another time zone": {"eta": datetime.fromisoformat(PAST + "+05:30")},
    "an eta without a time zone": {"eta": datetime.fromisoformat(PAST)},
    "an eta as a text": {"eta": PAST},
    "a countdown that is over": {"countdown": -5},
    "a countdown and a priority": {"countdown": 0.2, "priority": 9},
    **{f"serializer {name}": {"serializer": name} for name in ("pickle", "yaml")},
    **{f"compression {name}": {"compression": name} for name in ("zlib", "bzip2", "gzip")},
    "a compressed countdown": {"countdown": 0.2, "compression": "zlib", "headers": {"a": 1}},
}


@pytest.fixture(scope="module", params=["plain threads", "plain prefork", "asyncio"])
def ours(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    name = f"seen-{request.param.replace(' ', '-')}"
    url = f"cloche+{broker_url}"
    options = {"pool": request.param, "concurrency": 2, "accept_content": ACCEPT, **ROOT}
    directory = tmp_path_factory.mktemp(name)
    with worker(directory, url, name, module=MODULE, **options, result_backend=url) as found:
        yield found


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("stock")
    options = {"pool": "threads", "concurrency": 2, "accept_content": ACCEPT, **ROOT}
    with worker(directory, broker_url, "seen-stock", module=MODULE, **options) as found:
        yield found


@pytest.fixture(scope="module")
def stories(stock: Worker, client: redis.Redis) -> dict[str, str]:
    """What tasks see on stock Celery."""
    return _played(stock, client)


@pytest.fixture(scope="module")
def client(broker_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(broker_url)) as found:
        yield found


def push(client: redis.Redis, queue: str, made: Any) -> None:
    client.lpush(queue, made if isinstance(made, bytes) else json.dumps(made))


def _played(found: Worker, client: redis.Redis) -> dict[str, str]:
    waiting = {}
    for name, make in RAW.items():
        task_id = str(uuid.uuid4())
        push(client, found.name, make(found.name, task_id))
        waiting[name] = found.app.AsyncResult(task_id)
    for name, options in SENT.items():
        waiting[f"sent: {name}"] = found.app.send_task("see", **options)
    return {name: _without_eta(result.get(timeout=30)) for name, result in waiting.items()}


def _without_eta(told: str) -> str:
    """An eta that a countdown makes is another each time."""
    return told if PAST in told or "'eta': None" in told else told.partition("'eta'")[0]


def test_a_task_sees_what_it_sees_with_stock_celery(
    ours: Worker, stories: dict[str, str], client: redis.Redis
) -> None:
    assert _played(ours, client) == stories


def test_stock_workers_read_what_our_producers_send(
    ours: Worker, stock: Worker, stories: dict[str, str]
) -> None:
    found = {
        f"sent: {name}": ours.app.send_task("see", queue=stock.name, **options)
        for name, options in SENT.items()
    }
    told = {name: _without_eta(result.get(timeout=30)) for name, result in found.items()}
    assert told == {name: story for name, story in stories.items() if name in told}


def test_nothing_of_ours_reaches_a_retry_or_what_is_sent_on(
    ours: Worker, stock: Worker, client: redis.Redis
) -> None:
    told = {}
    for found in (stock, ours):
        own = found.app.send_task("see_retry", countdown=0.1, headers={"trace": "1"})
        passed = str(uuid.uuid4())
        found.app.send_task("pass_on", (passed,), headers={"x-delay": 9, "trace": "1"})
        # Two workers died with it: the next death would be the last.
        held = envelope(found.name, str(uuid.uuid4()))
        held["headers"]["task"] = "see_retry"
        for at in (1.0, 2.0):
            message.count_death(held, "gone", at)
        push(client, found.name, held)
        results = (own, found.app.AsyncResult(passed), held["headers"]["id"])
        told[found.name] = [
            _without_eta(found.app.AsyncResult(str(one)).get(timeout=30)) for one in results
        ]
    assert told[ours.name] == told[stock.name]
    assert "x-delay" in told[ours.name][1]
    assert not any("deaths" in one for one in told[ours.name])


def test_what_an_earlier_version_wrote_among_the_headers_is_taken_out(
    ours: Worker, client: redis.Redis
) -> None:
    made = envelope(ours.name, "earlier")
    made["headers"].update({"eta": "2999-01-01T00:00:00+00:00", "x-delay": 5, "x-deaths": []})
    made["headers"]["x-delivery-count"] = 0
    made["properties"]["timestamp"] = 1000.5
    push(client, ours.name, made)  # it waited, by the server's clock: it is due
    told = ours.app.AsyncResult("earlier").get(timeout=30)
    assert "x-d" not in told
    assert "timestamp" not in told


# -- what is refused


def broken(queue: str, task_id: str) -> dict[str, Any]:
    return envelope(queue, task_id, b"{broken")


def compressed(queue: str, task_id: str) -> dict[str, Any]:
    return envelope(queue, task_id, zlib.compress(b"[]")[:-3], compression="zlib")


def typed(content_type: str) -> Callable[..., dict[str, Any]]:
    return lambda queue, task_id: {
        **envelope(queue, task_id),
        "content-type": content_type,
    }


REFUSED: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "UTF-16, which kombu's JSON does not know": (utf_16, DecodeError, "undecodable"),
    "no JSON in the body": (broken, DecodeError, "undecodable"),
    "no arguments": (headed(b"5"), DecodeError, "undecodable"),
    "too few parts": (headed([[], {}]), InvalidTaskError, "invalid"),
    "no base64": (with_(body_encoding="base32"), Exception, "undecodable"),
    "a broken compression": (compressed, Exception, "undecodable"),
    "a type that is not accepted": (typed("text/x-none"), ContentDisallowed, "undecodable"),
    "an eta that is none": (headed(eta="tomorrow"), InvalidTaskError, "invalid"),
    "an unknown task": (headed(task="nobody.knows"), Exception, "unknown-task"),
}


def test_who_waits_for_a_refused_task_is_told(ours: Worker, client: redis.Redis) -> None:
    events = Events(ours.app)
    wait_until(events.beats, "a heartbeat")
    letters = DeadLetters(client)
    ids = {name: str(uuid.uuid4()) for name in REFUSED}
    for name, (make, _, _) in REFUSED.items():
        push(client, ours.name, make(ours.name, ids[name]))
    for name, (_, kind, _) in REFUSED.items():
        with pytest.raises(kind):
            ours.app.AsyncResult(ids[name]).get(timeout=30)

    def reasons() -> dict[str | None, str]:
        return {letter.task_id: letter.reason for letter in letters.latest(queue=ours.name)}

    wanted = {ids[name]: reason for name, (_, _, reason) in REFUSED.items()}
    wait_until(lambda: wanted.items() <= reasons().items(), "the reasons")
    for task_id in ids.values():
        wait_until(lambda one=task_id: "task-failed" in _types(events, one), "task-failed")  # type: ignore[misc]
    events.close()
    assert ours.app.send_task("see").get(timeout=30)


def _types(events: Events, task_id: str) -> list[str]:
    return [event["type"] for event in events.by_id[task_id]]


def test_a_task_that_killed_its_workers_fails_and_its_chord_with_it(
    ours: Worker, client: redis.Redis
) -> None:
    keys, consumer = Keys(), f"dead-{ours.name}"
    body = ours.app.signature("see", task_id=str(uuid.uuid4()))
    made = envelope(
        ours.name,
        str(uuid.uuid4()),
        ([], {}, {"chord": body}),
        group=consumer,
    )
    ours.app.backend.set_chord_size(consumer, 1)
    for at in (1.0, 2.0):
        message.count_death(made, "gone", at)
    client.hset(keys.inflight(consumer), f"0/{ours.name}", json.dumps(made))
    client.zadd(keys.leases, {consumer: 1})
    with pytest.raises(WorkerLostError):
        ours.app.AsyncResult(made["headers"]["id"]).get(timeout=30)
    with pytest.raises(Exception, match="consumers died"):
        ours.app.AsyncResult(body.id).get(timeout=30)


def test_a_message_above_a_limit_of_ones_own_is_told(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    directory = tmp_path_factory.mktemp("limited")
    url = f"cloche+{broker_url}"
    limit = {"broker_transport_options": {"max_message_bytes": 20_000}}
    with worker(directory, url, "seen-limited", concurrency=2, **limit) as found:
        with pytest.raises(InvalidTaskError, match="max_message_bytes=20000"):
            found.send("fail", "x" * 30_000).get(timeout=30)
        parts = [found.signature("add", "x" * 8_000, "") for _ in range(4)]
        with pytest.raises(InvalidTaskError, match="max_message_bytes=20000"):
            chord(parts, app=found.app)(found.signature("total")).get(timeout=30)


# -- what is delayed


def test_revoking_a_delayed_task_says_what_celery_says(ours: Worker, client: redis.Redis) -> None:
    events = Events(ours.app)
    wait_until(events.beats, "a heartbeat")
    result = ours.send("add", 1, 2, countdown=3600, priority=3)
    wait_until(lambda: client.hexists(Keys().delayed_messages(ours.name), result.id), "it waits")
    inspect = ours.app.control.inspect([f"{ours.name}@test"], timeout=10, limit=1)
    (answer,) = inspect.query_task(result.id).values()
    assert answer[result.id][0] == "scheduled"
    assert answer[result.id][1]["args"] == [1, 2]
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    wait_until(lambda: "task-revoked" in _types(events, result.id), "task-revoked")
    (event,) = (one for one in events.by_id[result.id] if one["type"] == "task-revoked")
    assert (event["terminated"], event["signum"], event["expired"]) == (False, None, False)
    events.close()
    wait_until(
        lambda: [result.id, "revoked"] in [n[:2] for n in ours.notes("signal")], "the signal"
    )
    assert client.zcard(Keys().delayed(ours.name)) == 0


def test_a_delayed_task_may_expire_be_revoked_by_its_stamps_and_rate_limited(ours: Worker) -> None:
    late = ours.send("add", 1, 2, countdown=0.5, expires=0.1)
    stamped = ours.signature("add", 1, 2)
    stamped.stamp(case="delayed")
    ours.app.control.revoke_by_stamped_headers({"case": "delayed"}, reply=True, timeout=5, limit=1)
    marked = stamped.apply_async(countdown=0.5)
    limited = [ours.send("slowly", countdown=0.2) for _ in range(3)]
    for result in (late, marked):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=30)
    first, *_, last = sorted(result.get(timeout=30) for result in limited)
    assert last - first > 0.08  # two of its twenty a second


def test_celery_purges_counts_and_deletes_what_is_delayed(
    ours: Worker, broker_url: str, client: redis.Redis
) -> None:
    queue = f"{ours.name}-elsewhere"
    with Celery(broker=f"cloche+{broker_url}") as app:
        app.conf.task_default_queue = queue
        for countdown in (None, 3600, 7200):
            app.send_task("see", countdown=countdown)
        with app.connection() as connection, connection.channel() as channel:
            assert channel.queue_declare(queue, passive=True).message_count == 3
            assert app.control.purge(connection=connection) == 3
            assert channel.queue_declare(queue).message_count == 0
            app.send_task("see", countdown=3600)
            assert channel.queue_declare(queue, passive=True).message_count == 1
            channel.queue_delete(queue, if_empty=True)
            assert channel.queue_declare(queue, passive=True).message_count == 1
            channel.queue_delete(queue)
            assert not client.keys(f"cloche:delayed*:{queue}")


def test_a_header_named_eta_means_nothing_without_a_task(broker_url: str) -> None:
    with Celery(broker=f"cloche+{broker_url}").connection() as connection:
        queue = connection.SimpleQueue(f"ships-{time.time()}")
        queue.put({"ship": 1}, headers={"eta": "2999-01-01T00:00:00+00:00"})
        assert queue.qsize() == 1
        found = queue.get(timeout=10)
        assert found.headers == {"eta": "2999-01-01T00:00:00+00:00"}
        found.ack()
        queue.close()
