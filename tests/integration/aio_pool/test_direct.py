"""What is particular to the direct path: whose messages are in whose hands, and when."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cloche.broker.dead_letters import DeadLetters
from cloche.broker.keys import Keys
from cloche.testing import BrokerProcess, wait_until
from tests.integration.aio_pool.harness import Worker, worker

pytestmark = pytest.mark.timeout(120)

QUEUE = "direct"


@pytest.fixture(scope="module")
def server() -> Iterator[BrokerProcess]:
    with BrokerProcess(persistent=True) as found:
        yield found


@pytest.fixture(scope="module")
def shared(server: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with _worker(server, tmp_path_factory.mktemp("shared"), QUEUE) as found:
        yield found


def _worker(server: BrokerProcess, directory: Path, name: str, **options: Any) -> Any:
    url = f"cloche+{server.url}"
    transport = {"lease": 2.0, **options.pop("transport", {})}
    given = {"concurrency": 10, "result_backend": url, "task_default_queue": QUEUE, **options}
    return worker(directory, url, name, broker_transport_options=transport, **given)


def _inflight(client: redis.Redis) -> int:
    keys = [*client.keys("cloche:inflight:*"), *client.keys("cloche:reaping:*")]
    return sum(int(client.hlen(key)) for key in keys)


def _idle(server: BrokerProcess) -> bool:
    client = server.client()
    return not _inflight(client) and not client.llen(QUEUE)


def _numbers(found: Worker, word: str) -> Counter[str]:
    return Counter(note[0] for note in found.notes(word))


def test_the_path_is_taken_and_an_option_switches_it_off(
    server: BrokerProcess, shared: Worker, tmp_path: Path
) -> None:
    # Until it listens to remote control there is no answer at all.
    begun = wait_until(lambda: (shared.ask("stats") or {}).get("direct_path"), "the path to begin")
    before: dict[str, int] = begun or {}
    shared.send("nothing").get(timeout=10)
    shared.send("plain", 0).get(timeout=10)
    after = shared.ask("stats")["direct_path"]
    assert after == {"plain": before["plain"] + 1, "others": before["others"] + 1}
    off_options = {"transport": {"direct_path": False}, "task_default_queue": "off"}
    with _worker(server, tmp_path, "off", **off_options) as off:
        off.send("nothing").get(timeout=10)
        assert off.ask("stats")["direct_path"] is None


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """What ``held`` tasks wait for: open at the latest when the test is over."""
    found = tmp_path / "gate"
    yield found
    found.touch()


def test_running_and_waiting_tasks_are_told_by_inspect(shared: Worker, gate: Path) -> None:
    results = [shared.send("held", f"told {number}", str(gate)) for number in range(14)]
    ids = {result.id for result in results}
    wait_until(lambda: len(shared.ask("active")) == 10, "ten to run")
    running = {request["id"] for request in shared.ask("active")}
    assert running < ids
    assert all(request["time_start"] for request in shared.ask("active"))
    one = next(iter(running))
    inspect = shared.app.control.inspect(destination=[f"{shared.name}@test"])
    assert inspect.query_task(one)[f"{shared.name}@test"][one][0] == "active"
    gate.touch()
    assert [result.get(timeout=20) for result in results] == [f"told {n}" for n in range(14)]
    totals = shared.ask("stats")["total"]
    assert totals["tests.integration.aio_pool.jobs.held"] >= 14
    wait_until(lambda: not shared.ask("active") and not shared.ask("reserved"), "nothing to run")


def test_no_more_is_held_than_the_prefetch_count(
    server: BrokerProcess, shared: Worker, gate: Path
) -> None:
    results = [shared.send("held", f"held {number}", str(gate)) for number in range(25)]
    client = server.client()
    wait_until(lambda: _inflight(client) == 10, "ten in flight")
    assert client.llen(QUEUE) == 15
    gate.touch()
    for result in results:
        result.get(timeout=20)


def test_what_was_fetched_ahead_goes_back_unmarked_when_tasks_turn_out_long(
    server: BrokerProcess, shared: Worker, gate: Path
) -> None:
    """Short ones make it fetch more than the prefetch count; then a long one takes each place."""
    short = [shared.send("nothing") for _ in range(1000)]
    long = [shared.send("held", f"ahead {number}", str(gate)) for number in range(60)]
    client = server.client()
    wait_until(lambda: _inflight(client) == 10 and client.llen(QUEUE) == 50, "ten in flight")
    assert not any('"redelivered": true' in text for text in client.lrange(QUEUE, 0, -1))
    shared.app.control.purge()
    gate.touch()
    for result in [*short, *long[:10]]:
        result.get(timeout=20)
    began = _numbers(shared, "began")
    assert sorted(name for name in began if name.startswith("ahead")) == sorted(
        f"ahead {number}" for number in range(10)
    )
    wait_until(lambda: _idle(server), "nothing in flight")


def test_a_run_begins_in_a_context_of_its_own(server: BrokerProcess, tmp_path: Path) -> None:
    """Also where it begins in the turn of one that has just ended."""
    options = {"task_default_queue": "leaves", "concurrency": 2, "worker_prefetch_multiplier": 20}
    with _worker(server, tmp_path, "leaves", **options) as found:
        results = [found.send("leaves", f"{number}") for number in range(200)]
        assert {one.get(timeout=20) for one in results} == {""}


def test_plain_tasks_that_end_make_room_for_the_next_at_once(
    server: BrokerProcess, tmp_path: Path
) -> None:
    """They take Celery's way, and are fetched on the loop all the same."""
    one_at_a_time = {"worker_prefetch_multiplier": 1, "concurrency": 1, "task_default_queue": "one"}
    with _worker(server, tmp_path, "plainly", **one_at_a_time) as found:
        results = [found.send("plain", 0) for _ in range(60)]
        # A look each second, which is there for lost wake-ups, would take a minute.
        assert len({tuple(one.get(timeout=30)) for one in results}) == 60


def test_a_waiting_task_that_is_revoked_never_starts(server: BrokerProcess, shared: Worker) -> None:
    busy = [shared.send("wait", 1.0) for _ in range(10)]
    wait_until(lambda: len(shared.ask("active")) == 10, "ten to run")
    result = shared.send("late", "unwanted", 0)
    shared.app.control.revoke(result.id, reply=True, destination=[f"{shared.name}@test"])
    for one in busy:
        one.get(timeout=20)
    wait_until(lambda: result.state == "REVOKED", "REVOKED")
    assert not _numbers(shared, "began")["unwanted"]
    wait_until(lambda: _idle(server), "nothing in flight")


def test_a_rate_limit_set_at_run_time_holds(server: BrokerProcess, shared: Worker) -> None:
    name = "tests.integration.aio_pool.jobs.tracked"
    to = [f"{shared.name}@test"]
    shared.app.control.rate_limit(name, "5/s", destination=to, reply=True)
    try:
        results = [shared.send("tracked") for _ in range(8)]
        for result in results:
            result.get(timeout=20)
    finally:
        shared.app.control.rate_limit(name, 0, destination=to, reply=True)
    ends = sorted(result.date_done for result in results)
    assert (ends[-1] - ends[0]).total_seconds() > 1
    wait_until(lambda: _idle(server), "nothing in flight")


def test_queues_are_added_and_cancelled_by_remote_control(shared: Worker) -> None:
    to = [f"{shared.name}@test"]
    shared.app.control.add_consumer("another", destination=to, reply=True)
    assert shared.send("add", 1, 2, queue="another").get(timeout=10) == 3
    shared.app.control.cancel_consumer("another", destination=to, reply=True)
    left = shared.send("add", 3, 4, queue="another")
    assert shared.send("add", 5, 6).get(timeout=10) == 11
    assert left.state == "PENDING"
    shared.app.control.add_consumer("another", destination=to, reply=True)
    assert left.get(timeout=10) == 7


def test_what_cannot_be_run_is_a_dead_letter(server: BrokerProcess, shared: Worker) -> None:
    client = server.client()
    client.lpush(QUEUE, b"\xff junk", '{"body": "no properties"}')
    shared.app.send_task("no.such.task", [1])
    letters = DeadLetters(client, Keys())

    def reasons() -> list[str]:
        return sorted(letter.reason for letter in letters.latest())

    wait_until(lambda: reasons() == ["undecodable", "undecodable", "unknown-task"], "three")
    letters.purge([letter.id for letter in letters.latest()])
    wait_until(lambda: _idle(server), "nothing in flight")


def test_connections_that_are_cut_cost_nothing(server: BrokerProcess, shared: Worker) -> None:
    results = [shared.send("late", f"cut {number}", 1.0) for number in range(30)]
    wait_until(lambda: len(_numbers(shared, "began")) >= 1, "some to run")
    client = server.client()
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)
    assert [result.get(timeout=30) for result in results] == [f"cut {n}" for n in range(30)]
    began = _numbers(shared, "began")
    assert {began[f"cut {number}"] for number in range(30)} == {1}
    wait_until(lambda: _idle(server), "nothing in flight")


def test_a_killed_workers_tasks_run_elsewhere(server: BrokerProcess, tmp_path: Path) -> None:
    with _worker(server, tmp_path, "first", task_default_queue="kill") as first:
        results = [first.send("late", f"kill {number}", 0.3) for number in range(60)]
        wait_until(lambda: len(_numbers(first, "ended")) >= 5, "some to end")
        first.process.kill()
        first.process.wait(10)
        with _worker(server, tmp_path, "second", task_default_queue="kill") as second:
            assert [one.get(timeout=40) for one in results] == [f"kill {n}" for n in range(60)]
            twice = _numbers(first, "began") & _numbers(second, "began")
            ended = _numbers(first, "ended")
            assert len(twice - ended) <= 10, "more ran twice than ran at the fault"
            # Their bodies were over, their acknowledgements not yet sent.
            assert len(twice & ended) <= 10


def test_a_stopped_worker_ends_what_it_runs_and_leaves_the_rest(
    server: BrokerProcess, tmp_path: Path
) -> None:
    with _worker(server, tmp_path, "stopped", task_default_queue="stop") as found:
        for number in range(40):
            found.send("late", f"stop {number}", 0.5)
        wait_until(lambda: len(_numbers(found, "began")) >= 10, "some to run")
        assert found.stop() == 0
        began, ended = _numbers(found, "began"), _numbers(found, "ended")
        assert began == ended
    client = server.client()
    assert client.llen("stop") == 40 - len(ended)
    assert not _inflight(client)


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    with BrokerProcess(persistent=True) as own, _worker(own, tmp_path, "survivor") as found:
        results = [found.send("late", f"gone {number}", 0.5) for number in range(40)]
        wait_until(lambda: len(_numbers(found, "began")) >= 10, "some to run")
        own.kill()
        own.start()
        got = [result.get(timeout=40) for result in results]
        assert got == [f"gone {number}" for number in range(40)]
        wait_until(lambda: _idle(own), "nothing in flight")


def test_a_worker_stopped_at_once_gives_back_what_it_ran(
    server: BrokerProcess, tmp_path: Path
) -> None:
    with _worker(server, tmp_path, "quitting", task_default_queue="quit") as found:
        for number in range(20):
            found.send("late", f"quit {number}", 3.0)
        wait_until(lambda: len(_numbers(found, "began")) == 10, "ten to run")
        found.stop(how=signal.SIGQUIT)
        assert not found.notes("ended")
    client = server.client()
    wait_until(lambda: client.llen("quit") == 20 and not _inflight(client), "all to be back")


def test_a_worker_that_slept_past_its_lease_is_fenced(
    server: BrokerProcess, tmp_path: Path
) -> None:
    with _worker(server, tmp_path, "sleepy", task_default_queue="fence") as sleepy:
        results = [sleepy.send("late", f"fence {number}", 1.0) for number in range(12)]
        wait_until(lambda: len(_numbers(sleepy, "began")) == 10, "ten to run")
        sleepy.process.send_signal(signal.SIGSTOP)
        with _worker(server, tmp_path, "awake", task_default_queue="fence") as awake:
            wait_until(lambda: len(_numbers(awake, "ended")) == 12, "all to run elsewhere")
            sleepy.process.send_signal(signal.SIGCONT)
            wait_until(lambda: "lease lost" in sleepy.log, "it to be told")
            for result in results:
                result.get(timeout=20)
            one_more = sleepy.send("late", "fence more", 0)
            assert one_more.get(timeout=20) == "fence more"
        wait_until(lambda: "fenced: " in sleepy.log, "the late ones to be told")
        wait_until(lambda: not _inflight(server.client()), "nothing in flight")


def test_a_task_that_kills_its_worker_is_a_dead_letter_and_no_other_is(
    server: BrokerProcess, tmp_path: Path
) -> None:
    client = server.client()
    with _worker(server, tmp_path, "victim", task_default_queue="deadly") as victim:
        victim.send("kill")
        others = [victim.send("late", f"innocent {number}", 0.2) for number in range(5)]
        for _ in range(3):
            victim.process.wait(20)
            victim.start()
        letters = DeadLetters(client, Keys())
        wait_until(lambda: letters.latest(queue="deadly"), "the dead letter", 30)
        (letter,) = letters.latest(queue="deadly")
        assert (letter.reason, letter.task) == (
            "max-deliveries",
            "tests.integration.aio_pool.jobs.kill",
        )
        for one in others:
            one.get(timeout=20)
