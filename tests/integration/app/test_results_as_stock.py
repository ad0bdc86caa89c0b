"""What is stored of tasks, and told of it, is what a stock worker stores and tells."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chord, group
from celery.result import AsyncResult

from cloche.testing import BrokerProcess, wait_until
from tests.integration.app.conftest import StartWorker

pytestmark = pytest.mark.timeout(150)

APP = "tests.integration.app.results_app"
POOLS = ("prefork", "threads", "asyncio")


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with BrokerProcess() as server:
        yield server


class Reader:
    """A stock client on one database, which hears all that is told there."""

    def __init__(self, broker: BrokerProcess, database: int) -> None:
        self.url = f"redis://127.0.0.1:{broker.port}/{database}"
        self.app = Celery(broker=self.url, backend=self.url, set_as_current=False)
        self.app.conf.update(accept_content=["json", "pickle"])
        client: Any = redis.Redis
        self.redis = client.from_url(self.url)
        self.heard = self.redis.pubsub(ignore_subscribe_messages=True)
        self.told: dict[str, list[str]] = {}
        #: ids of tasks -> what to call them in a comparison
        self.names: dict[str, str] = {}

    def send(self, name: str, *args: Any, **options: Any) -> AsyncResult:
        result = self.app.send_task(name, args, **options)
        self.names[result.id] = name
        return result

    def stored(self, task_id: str) -> dict[str, Any]:
        value = self.redis.get(f"celery-task-meta-{task_id}")
        return self._plain(value) if value else {}

    def listen(self, task_id: str) -> None:
        self.heard.subscribe(f"celery-task-meta-{task_id}")
        self.heard.get_message(timeout=5)

    def states(self) -> list[Any]:
        """The states told so far, each as stored."""
        found = []
        while (message := self.heard.get_message(timeout=0.3)) is not None:
            found.append(self._plain(message["data"]))
        return found

    def _plain(self, value: bytes) -> dict[str, Any]:
        text = value.decode()
        for known, name in self.names.items():
            text = text.replace(known, f"<{name}>")
        text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", text)
        text = re.sub(r'"date_done": "[\d-]+T[\d:.]+\+0[12]:00"', '"date_done": "<date>"', text)
        found: dict[str, Any] = json.loads(text)
        if found.get("traceback"):
            found["traceback"] = found["traceback"].strip().splitlines()[-1]
        if found["status"] == "STARTED":
            found["result"] = sorted(found["result"])
        if "worker" in found:
            found["worker"] = "@" in found["worker"]
        return found

    def close(self) -> None:
        self.heard.close()
        self.redis.close()
        self.app.close()


def _one(reader: Reader, name: str, *args: Any, **options: Any) -> Any:
    """One task: the states told of it, and what is stored at the end."""
    task_id = f"{name}-{time.monotonic_ns()}"
    reader.listen(task_id)
    result = reader.send(name, *args, task_id=task_id, **options)
    result.get(timeout=20, propagate=False)
    assert AsyncResult(task_id, app=reader.app).state == result.state
    return reader.states(), reader.stored(task_id)


def _children(reader: Reader) -> Any:
    told = _one(reader, "parent")
    (child,) = told[1]["children"]
    return told, child[0][1], child[1]


def _fan(reader: Reader) -> Any:
    ids = [f"for-{name}-{time.monotonic_ns()}" for name in "abcde"]
    reader.names.update(zip(ids, "abcde", strict=True))
    seen = reader.send("fan", ids).get(timeout=20)
    return seen, [reader.stored(one) for one in ids]


def _early(reader: Reader, how: str) -> Any:
    result = reader.send("early", how)
    value = result.get(timeout=20)
    reader.redis.set(f"seen-{result.id}", 1)
    return value, reader.stored(result.id)


def _ignored(reader: Reader, name: str, *args: Any, **options: Any) -> Any:
    result = reader.send(name, *args, **options)
    reader.send("add", 1, 1).get(timeout=20)
    reader.send("add", 1, 1).get(timeout=20)
    return reader.stored(result.id)


def _chord(reader: Reader, header: str) -> Any:
    add, total = reader.app.signature("add"), reader.app.signature("total")
    first = reader.app.signature(header)
    parts = [add.clone((1, 1)), first if header == "fail" else add.clone((2, 2))]
    whole = chord(parts, total, app=reader.app).apply_async()
    value = whole.get(timeout=20, propagate=False)
    if header != "fail":  # which counters a failed one leaves depends on who was first
        wait_until(lambda: not _counters(reader), "the counters to go", 10)
    return type(value), whole.state


def _counters(reader: Reader) -> list[str]:
    keys = [key.decode().rpartition(".")[2] for key in reader.redis.keys("celery-taskset-meta-*")]
    return sorted(key for key in keys if key not in "c")


def _group(reader: Reader) -> Any:
    many = group([reader.app.signature("add", (n, n)) for n in range(5)], app=reader.app)
    result = many.apply_async()
    values = result.get(timeout=20), [meta["status"] for _, meta in result.iter_native()]
    result.save()
    restored = reader.app.GroupResult.restore(result.id)
    found = restored.join_native(timeout=5), reader.redis.ttl(_group_key(result.id)) > 3600
    result.delete()
    gone = reader.app.GroupResult.restore(result.id)
    result.forget()
    return values, found, gone, reader.stored(result.results[0].id)


def _group_key(group_id: str) -> str:
    return f"celery-taskset-meta-{group_id}"


PLAYS: dict[str, Callable[[Reader], Any]] = {
    "a number": lambda at: _one(at, "add", 1, 2),
    "a mapping": lambda at: _one(at, "mapping"),
    "children": _children,
    "a failure": lambda at: _one(at, "fail"),
    "an odd exception": lambda at: _one(at, "odd"),
    "an object": lambda at: _one(at, "unencodable", "object")[1]["status"],
    "a huge number": lambda at: _one(at, "unencodable", "huge")[1]["status"],
    "an exception as a value": lambda at: _one(at, "unencodable", "error")[1]["status"],
    "progress": lambda at: _one(at, "progress"),
    "results of others": _fan,
    "a result before the body ends": lambda at: _early(at, "update_state"),
    "done before the body ends": lambda at: _early(at, "mark_as_done"),
    "states after a success": lambda at: _one(at, "after_success"),
    "retries": lambda at: _one(at, "retried"),
    "ignored": lambda at: _ignored(at, "ignored", False),
    "an ignored failure": lambda at: _ignored(at, "ignored", True).get("status"),
    "ignored by the call": lambda at: _ignored(at, "add", 1, 2, ignore_result=True),
    "kept by the call": lambda at: _one(at, "ignored", False, ignore_result=False)[1],
    "arguments in pickle": lambda at: _one(at, "add", 1, 2, serializer="pickle"),
    "a chord": lambda at: _chord(at, "add"),
    "a chord that fails": lambda at: _chord(at, "fail"),
    "a group": _group,
}


@pytest.fixture(scope="module")
def stock(broker: BrokerProcess, start_workers: StartWorker) -> dict[str, Any]:
    reader = Reader(broker, 0)
    environ = {"RESULTS_STOCK": "1", "C_FORCE_ROOT": "1"}
    start_workers(reader.url, "-c", "2", "-n", "w", app=APP, stock=True, **environ)
    found = {name: play(reader) for name, play in PLAYS.items()}
    reader.close()
    return found


@pytest.fixture(scope="module", params=POOLS)
def ours(
    broker: BrokerProcess, start_workers: StartWorker, request: pytest.FixtureRequest
) -> Iterator[Reader]:
    reader = Reader(broker, 1 + POOLS.index(request.param))
    start_workers(
        reader.url, *("-P", request.param, "-c", "2", "--name", "w"), app=APP, C_FORCE_ROOT="1"
    )
    yield reader
    reader.close()


@pytest.mark.parametrize("play", PLAYS)
def test_a_worker_stores_and_tells_what_a_stock_one_does(
    play: str, ours: Reader, stock: dict[str, Any]
) -> None:
    assert PLAYS[play](ours) == stock[play]


def test_a_task_runs_whose_arguments_results_cannot_carry(ours: Reader) -> None:
    result = ours.send("total", {1, 2, 3}, serializer="pickle")
    assert result.get(timeout=20) == 6
    assert ours.stored(result.id)["args"] == ["{1, 2, 3}"]


def test_a_success_is_stored_before_it_is_told(ours: Reader) -> None:
    for number in range(20):
        result = ours.app.send_task("add", [number, 1])
        assert result.get(timeout=20) == number + 1
        assert AsyncResult(result.id, app=ours.app).state == "SUCCESS"


@pytest.mark.parametrize("options", [{}, {"expires": 60}], ids=["plain", "expires"])
def test_the_last_attempt_has_the_last_word(ours: Reader, options: dict[str, Any]) -> None:
    task_id = f"back-{time.monotonic_ns()}"
    ours.listen(task_id)
    ours.send("back_at_once", task_id=task_id, kwargs=options)
    told: list[str] = []

    def both() -> bool:
        told.extend(state["status"] for state in ours.states())
        return {"RETRY", "FAILURE"} <= {*told}

    wait_until(both, "both attempts to be told", 20)
    assert told == ["STARTED", "RETRY", "STARTED", "FAILURE"]
