"""Messages received without kombu's: nothing differs from outside, on threads and on prefork."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloche.testing import wait_until
from tests.integration.aio_pool.harness import Worker, worker
from tests.integration.aio_pool.test_same_as_prefork import PLAYS, Events, _lines, _tell

pytestmark = pytest.mark.timeout(120)

MODULE = "tests.integration.transport.plain_jobs"
POOLS = ("plain prefork", "plain threads")


@pytest.fixture(scope="module", params=POOLS)
def plain(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """A worker as ``cloche worker`` starts it, with two slots."""
    url = f"cloche+{broker_url}"
    name = str(request.param).replace(" ", "-")
    directory = tmp_path_factory.mktemp(name)
    options: dict[str, Any] = {"pool": request.param, "concurrency": 2, "result_backend": url}
    with worker(directory, url, name, module=MODULE, **options) as found:
        yield found


@pytest.fixture(scope="module")
def stock_stories(
    plain: Worker, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> dict[str, Any]:
    """What happened in each play on Celery's pool of the same kind, on its own transport."""
    directory = tmp_path_factory.mktemp("stock")
    kind = plain.pool.removeprefix("plain ")
    with worker(directory, broker_url, f"stock-{kind}", pool=kind, concurrency=2) as found:
        return _played(found)


@pytest.fixture(scope="module")
def stories(plain: Worker) -> dict[str, Any]:
    """And on ours."""
    return _played(plain)


def _played(found: Worker) -> dict[str, Any]:
    events = Events(found.app)
    wait_until(events.beats, "a heartbeat")
    results = {name: play(found) for name, play in PLAYS.items()}
    roots = {name: result.id for name, result in results.items() if result}
    told = _tell(found, events, results, roots)
    events.close()
    return told


@pytest.mark.parametrize("play", PLAYS)
def test_the_same_signals_events_and_states_as_on_the_stock_pool(
    play: str, stories: dict[str, Any], stock_stories: dict[str, Any]
) -> None:
    ours, stock = stories[play], stock_stories[play]
    assert stock["runs"], "nothing was seen on the stock pool: the test would prove nothing"
    by_chance = play == "a replaced task"
    assert _lines(ours, by_chance) == _lines(stock, by_chance)


def test_plain_messages_are_told_from_others(plain: Worker) -> None:
    def received() -> int:
        return int(plain.ask("stats")["plain_messages"])

    before = received()
    assert plain.send("add", 1, 2).get(timeout=20) == 3
    assert received() == before + 1
    assert plain.send("add", 1, 2, countdown=0.1).get(timeout=20) == 3
    assert plain.send("add", 1, 2, expires=60).get(timeout=20) == 3
    assert plain.send("add", 1, 2, compression="zlib").get(timeout=20) == 3
    assert received() == before + 1


def test_a_task_revoked_before_it_came_does_not_run(plain: Worker) -> None:
    plain.app.control.revoke("revoked-early", reply=True, timeout=10, limit=1)
    result = plain.send("add", 1, 2, task_id="revoked-early")
    wait_until(lambda: result.state == "REVOKED", "the state")
