"""Many coroutines at once, limits, revokes, and who sees what of itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import group
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

from cloche.errors import TaskCancelledError
from cloche.testing import wait_until
from tests.integration.aio_pool.harness import Worker, worker

pytestmark = pytest.mark.timeout(120)


def test_a_thousand_sleepers_sleep_at_the_same_time_in_few_threads_and_connections(
    asyncio_worker: Worker, broker_url: str
) -> None:
    client = redis.Redis.from_url(broker_url)
    before = len(client.client_list())
    tasks = group(asyncio_worker.signature("wait", 1) for _ in range(1000))
    began = time.monotonic()
    results = tasks.apply_async()
    at_once = wait_until(
        lambda: (asyncio_worker.ask("stats") or {"pool": {"running": 0}})["pool"]["running"],
        "most of them running at once",
    )
    assert at_once > 10
    assert results.get(timeout=60) == [1] * 1000
    assert time.monotonic() - began < 60  # one after the other: 1,000 s
    connections = len(client.client_list()) - before
    client.close()
    assert connections <= 15  # the worker's and this test's own
    census = asyncio_worker.send("census").get(timeout=20)
    assert census["threads"] <= 10, census
    assert census["untouched"]


def test_the_soft_limit_is_raised_in_the_coroutine_which_may_tidy_up_and_succeed(
    asyncio_worker: Worker,
) -> None:
    result = asyncio_worker.send("soft", 30)
    assert result.get(timeout=20) == "tidied up"
    assert result.state == "SUCCESS"


def test_a_soft_limit_nobody_catches_fails_the_task(asyncio_worker: Worker) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        asyncio_worker.send("too_long").get(timeout=20)


def test_a_limit_of_the_call_overrides_the_tasks_own(asyncio_worker: Worker) -> None:
    assert asyncio_worker.send("soft", 1.2, soft_time_limit=30).get(timeout=20) == "slept"


def test_the_hard_limit_ends_what_swallows_cancellation_and_drops_its_late_result(
    asyncio_worker: Worker,
) -> None:
    called = asyncio_worker.signature("heard", task_id="errback-of-stubborn")
    result = asyncio_worker.send("stubborn", "hard", time_limit=1, link_error=called)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)
    assert not asyncio_worker.notes("late")  # it goes on for four seconds
    assert asyncio_worker.app.AsyncResult("errback-of-stubborn").get(timeout=10) is not None
    wait_until(lambda: ["hard"] in asyncio_worker.notes("late"), "the body's end")
    assert ["hard"] in asyncio_worker.notes("swallowed")
    assert asyncio_worker.send("add", 1, 1).get(timeout=10) == 2
    assert result.state == "FAILURE"
    assert asyncio_worker.ask("stats")["pool"]["running"] == 0


def test_a_coroutine_that_never_awaits_is_named_and_ended_while_the_worker_lives(
    asyncio_worker: Worker,
) -> None:
    sibling = asyncio_worker.send("wait", 0.5)
    result = asyncio_worker.send("spin", soft_time_limit=3)
    wait_until(lambda: f"jobs.spin[{result.id}]" in _stalls(asyncio_worker), "the stack in the log")
    assert "in spin" in asyncio_worker.log
    assert asyncio_worker.ask("ping") == {"ok": "pong"}
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=20)
    assert sibling.get(timeout=10) == 0.5
    assert asyncio_worker.ask("stats")["pool"]["stalls"] >= 1


def _stalls(worker: Worker) -> str:
    return "\n".join(line for line in worker.log.splitlines() if "loop is blocked" in line)


def test_a_blocking_call_is_named_with_its_stack(asyncio_worker: Worker) -> None:
    result = asyncio_worker.send("block", 2.0)
    result.get(timeout=20)
    assert f"jobs.block[{result.id}]" in _stalls(asyncio_worker)
    assert "in block" in asyncio_worker.log


@pytest.mark.parametrize(
    ("how", "error"),
    [("exit", WorkerLostError), ("memory", MemoryError), ("stray", TaskCancelledError)],
)
def test_leaving_by_the_back_door_fails_one_task_of_a_hundred(
    how: str, error: type[BaseException], asyncio_worker: Worker
) -> None:
    siblings = [asyncio_worker.send("wait", 0.3) for _ in range(99)]
    result = asyncio_worker.send("leave", how)
    with pytest.raises(error):
        result.get(timeout=20)
    assert result.state == "FAILURE"
    assert [one.get(timeout=20) for one in siblings] == [0.3] * 99


def test_a_terminated_coroutine_runs_its_finally_blocks_and_stays_revoked(
    asyncio_worker: Worker,
) -> None:
    result = asyncio_worker.send("tidy", "revoked", 30)
    wait_until(lambda: ["revoked"] in asyncio_worker.notes("began"), "its start")
    result.revoke(terminate=True)
    wait_until(lambda: ["revoked"] in asyncio_worker.notes("tidied"), "its clean-up")
    wait_until(lambda: result.state == "REVOKED", "REVOKED")
    assert asyncio_worker.send("add", 1, 1).get(timeout=10) == 2
    assert result.state == "REVOKED"
    wait_until(lambda: asyncio_worker.ask("stats")["pool"]["running"] == 0, "its slot")


def test_every_run_sees_its_own_request_after_awaits_in_child_tasks_and_in_threads(
    asyncio_worker: Worker,
) -> None:
    results = [asyncio_worker.send("identify", number) for number in range(500)]
    for number, result in enumerate(results):
        expected: list[Any] = [result.id, number, result.id, f"color {number}"]
        assert result.get(timeout=60) == [expected] * 4
    lines = asyncio_worker.log.splitlines()
    for number in (0, 250, 499):
        assert any(
            line.endswith(f"from run {number}") and f"identify[{results[number].id}]" in line
            for line in lines
        ), "the log line does not carry its task's name and id"


def test_what_is_put_around_tracer_and_body_is_around_each_run_and_no_other(
    asyncio_worker: Worker,
) -> None:
    runs = group(asyncio_worker.signature("surroundings") for _ in range(100)).apply_async()
    wrapped = "wrapped" in asyncio_worker.name
    assert runs.get(timeout=30) == [["tracer", "body"] if wrapped else []] * 100


def test_plain_tasks_run_in_threads_beside_coroutines_at_their_own_concurrency(
    asyncio_worker: Worker,
) -> None:
    plain = [asyncio_worker.send("plain", 0.3) for _ in range(16)]
    assert asyncio_worker.send("add", 1, 1).get(timeout=10) == 2
    answers = [one.get(timeout=30) for one in plain]
    assert [uuid for _, _, uuid in answers] == [one.id for one in plain]
    assert _most_at_once([(began, ended) for began, ended, _ in answers]) == 8


def test_rate_limits_hold(asyncio_worker: Worker) -> None:
    results = [asyncio_worker.send("slowly") for _ in range(9)]
    moments = sorted(one.get(timeout=20) for one in results)
    assert moments[-1] - moments[0] > 7 / 20


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)


def test_the_soft_limit_reaches_plain_tasks_too(asyncio_worker: Worker) -> None:
    assert asyncio_worker.send("plain_soft").get(timeout=20) == "tidied up"


def test_it_works_on_a_transport_without_an_event_loop(tmp_path: Path, broker_url: str) -> None:
    letters, control = tmp_path / "letters", tmp_path / "control"
    letters.mkdir()
    control.mkdir()
    options = {
        "data_folder_in": str(letters),
        "data_folder_out": str(letters),
        "control_folder": str(control),
    }
    with worker(
        tmp_path,
        "filesystem://",
        "filesystem",
        result_backend=broker_url,
        broker_transport_options=options,
        worker_enable_remote_control=False,
    ) as found:
        results = [found.send("late", str(number), 0.5) for number in range(10)]
        plain, soft = found.send("plain", 0.1), found.send("soft", 30)
        assert [one.get(timeout=40) for one in results] == [str(number) for number in range(10)]
        assert plain.get(timeout=20)[2] == plain.id
        assert soft.get(timeout=20) == "tidied up"
        unfinished = found.send("late", "last", 2)
        wait_until(lambda: ["last"] in found.notes("began"), "its start")
        assert found.stop() == 0
        assert unfinished.get(timeout=10) == "last"
