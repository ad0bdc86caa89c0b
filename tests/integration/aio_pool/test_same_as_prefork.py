"""What happens to a task, told by signals, hooks, events and states, is what happens on prefork."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult

from cloche.testing import wait_until
from tests.integration.aio_pool.harness import Worker

pytestmark = pytest.mark.timeout(120)


class Events:
    """The events of all workers of a broker, by task id, as they come in."""

    def __init__(self, app: Any) -> None:
        self.heartbeats = 0
        self.by_id: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self._heard})
        self._thread = threading.Thread(
            target=self._receiver.capture, kwargs={"wakeup": False}, daemon=True
        )
        self._thread.start()

    def _heard(self, event: dict[str, Any]) -> None:
        self.heartbeats += event["type"] == "worker-heartbeat"
        if "uuid" in event:
            self.by_id[event["uuid"]].append(event)

    def beats(self) -> int:
        return self.heartbeats

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(5)
        self._connection.close()


Play = Callable[[Worker], AsyncResult | None]


def _linked(worker: Worker) -> Any:
    ok, error = worker.signature("heard"), worker.signature("heard")
    return worker.send("add", 1, 2, link=[ok, worker.signature("add", 10)], link_error=error)


def _failing_link(worker: Worker) -> Any:
    ok, error = worker.signature("heard"), worker.signature("heard")
    return worker.send("fail", "x", link=ok, link_error=error)


def _chain(worker: Worker) -> Any:
    return chain(
        worker.signature("add", 1, 2), worker.signature("add", 3), worker.signature("add", 4)
    ).apply_async()


def _chord(worker: Worker) -> Any:
    # Alike: the body belongs to the tree of whichever ends last.
    header = [worker.signature("add", 1, 1) for _ in range(3)]
    return chord(header, app=worker.app)(worker.signature("total"))


def _broken_chord(worker: Worker) -> Any:
    header = [worker.signature("add", 1, 1), worker.signature("fail", "part")]
    body = worker.signature("total").on_error(worker.signature("heard"))
    return chord(header, app=worker.app)(body)


def _group(worker: Worker) -> Any:
    members = (worker.signature("add", number, 1) for number in range(3))
    return group(*members, app=worker.app).apply_async().results[-1]


def _simple(task: str, *args: Any, **options: Any) -> Play:
    return lambda worker: worker.send(task, *args, **options)


PLAYS: dict[str, Play] = {
    "a success": _simple("add", 1, 2),
    "a failure": _simple("fail", "x"),
    "an expected failure": _simple("expected"),
    "wrong arguments": _simple("add", 1, 2, 3),
    "a result that cannot be stored": _simple("unstorable"),
    "a retry": _simple("again"),
    "a retry in vain": _simple("again_in_vain"),
    "an automatic retry with back-off": _simple("by_itself"),
    "an automatic retry in vain": _simple("by_itself_in_vain"),
    "Ignore": _simple("ignore"),
    "Reject": _simple("reject"),
    "an ignored result": _simple("unheard"),
    "an ignored result by request": _simple("add", 1, 2, ignore_result=True),
    "STARTED": _simple("tracked"),
    "a replaced task": _simple("replaced"),
    "an expired task": _simple("add", 1, 2, expires=-5),
    "a countdown": _simple("add", 1, 2, countdown=0.3),
    "a soft limit": _simple("too_long"),
    "link and link_error of a success": _linked,
    "link and link_error of a failure": _failing_link,
    "a chain": _chain,
    "a group": _group,
    "a chord": _chord,
    "a chord with a failed part": _broken_chord,
}


@pytest.fixture(scope="module")
def stories(asyncio_worker: Worker, prefork_worker: Worker) -> dict[str, dict[str, dict[str, Any]]]:
    """What happened in each play, on each pool."""
    told = {}
    for worker in (asyncio_worker, prefork_worker):
        events = Events(worker.app)
        wait_until(events.beats, "a heartbeat")
        results = {name: play(worker) for name, play in PLAYS.items()}
        roots = {name: result.id for name, result in results.items() if result}
        told[worker.pool] = _tell(worker, events, results, roots)
        events.close()
    return told


def _tell(
    worker: Worker, events: Events, results: dict[str, Any], roots: dict[str, str]
) -> dict[str, Any]:
    _settled(worker, events)
    trees: dict[str, list[str]] = defaultdict(list)
    for uuid, own in events.by_id.items():
        first = own[0]
        trees[first.get("root_id") or uuid].append(uuid)
    story: dict[str, Any] = {}
    for name, result in results.items():
        root = _root_of(events, roots[name])
        story[name] = {
            "state": result.state,
            "runs": [_run(worker, events, uuid, trees[root]) for uuid in trees[root]],
        }
    results.clear()
    return story


def _root_of(events: Events, uuid: str) -> str:
    own = events.by_id.get(uuid)
    return (own[0].get("root_id") or uuid) if own else uuid


def _settled(worker: Worker, events: Events) -> None:
    """Wait until nothing new has happened for two seconds."""
    seen, since = -1, time.monotonic()
    deadline = time.monotonic() + 40
    while time.monotonic() - since < 2 and time.monotonic() < deadline:
        now = sum(map(len, events.by_id.values())) + len(worker.notes("signal"))
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.1)


def _run(worker: Worker, events: Events, uuid: str, tree: list[str]) -> dict[str, Any]:
    """One task of a play: its events, and its signals and hooks, ids made anonymous."""
    kinds = [event["type"] for event in events.by_id[uuid]]
    details = {
        key: event[key]
        for event in events.by_id[uuid]
        for key in ("name", "retries", "result", "exception", "terminated", "expired")
        if key in event
    }
    signals = [[name, facts] for found, name, facts in worker.notes("signal") if found == uuid]
    return {
        "events": kinds,
        "details": _anonymous(repr(details)),
        "signals": [f"{name} {_anonymous(repr(facts))}" for name, facts in signals],
        "state": AsyncResult(uuid, app=worker.app).state,
        "result": _anonymous(repr(AsyncResult(uuid, app=worker.app).result)),
    }


def _anonymous(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text)
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    return re.sub(r"'(pid|hostname)': [^,}]+", "", text)


@pytest.mark.parametrize("play", PLAYS)
def test_the_same_signals_events_and_states_as_on_prefork(
    play: str, stories: dict[str, dict[str, dict[str, Any]]]
) -> None:
    ours, stock = stories["asyncio"][play], stories["prefork"][play]
    assert stock["runs"], "nothing was seen on prefork: the test would prove nothing"
    # A replacement runs under the same id while the replaced one still ends, on prefork in
    # another process: what comes first is chance.
    by_chance = play == "a replaced task"
    assert _lines(ours, by_chance) == _lines(stock, by_chance)


def _lines(story: dict[str, Any], by_chance: bool) -> list[str]:
    runs = sorted(_run_lines(run, by_chance) for run in story["runs"])
    return [f"state {story['state']}", *(line for lines in runs for line in lines)]


def _run_lines(run: dict[str, Any], by_chance: bool) -> list[str]:
    # A retry's message may be received, and run, before its sender has told of the retry.
    again = run["events"].count("task-received") > 1
    order = sorted if by_chance or again else list
    return [
        *(f"{key} {run[key]}" for key in ("details", "state", "result")),
        *(sorted(run["events"]) if again else run["events"]),
        *order(run["signals"]),
    ]
