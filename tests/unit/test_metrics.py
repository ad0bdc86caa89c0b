"""What the metrics show of a cluster, and how many series they may become."""

from __future__ import annotations

from typing import Any

from celery.events.state import State
from prometheus_client.parser import text_string_to_metric_families

from cloche.metrics import MAX_LABEL_SETS, Metrics
from cloche.records import QueueSeen, Snapshot, WorkerSeen
from cloche.testing import wait_until


def _worker(name: str, **figures: float) -> WorkerSeen:
    return WorkerSeen(name, 1, "asyncio", 10, ("q",), 2, {}, 1.0, figures=figures)


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def _tell(metrics: Metrics, state: State, kind: str, task: str, name: str, **more: Any) -> None:
    event = {
        "type": kind, "uuid": task, "name": name, "hostname": "w@h",
        "timestamp": 1.0, "local_received": 1.0, "clock": 1, **more,
    }  # fmt: skip
    state.event(event)
    metrics.event(event, state.tasks.get(task))


def test_workers_that_are_gone_are_down_not_missing() -> None:
    now = [Snapshot(1.0, workers=(_worker("a@h"), _worker("b@h")))]
    metrics = Metrics(lambda: now[0])
    assert _samples(metrics)["celery_worker_up", ("b@h",)] == 1
    now[0] = Snapshot(2.0, workers=(_worker("a@h"),))
    assert _samples(metrics)["celery_worker_up", ("b@h",)] == 0
    assert _samples(metrics)["celery_worker_up", ("a@h",)] == 1


def test_stalls_and_lost_leases_are_shown_of_workers_that_tell_them() -> None:
    workers = (_worker("a@h", stalls=3, leases_lost=1, fenced=2), _worker("stock@h"))
    samples = _samples(Metrics(lambda: Snapshot(1.0, workers=workers)))
    assert samples["cloche_loop_stalls_total", ("a@h",)] == 3
    assert samples["cloche_leases_lost_total", ("a@h",)] == 1
    assert samples["cloche_fenced_acks_total", ("a@h",)] == 2
    assert ("cloche_loop_stalls_total", ("stock@h",)) not in samples


def test_a_queue_of_unknown_length_has_none() -> None:
    queues = (QueueSeen("q", None, ("a@h",)),)
    samples = _samples(Metrics(lambda: Snapshot(1.0, workers=(_worker("a@h"),), queues=queues)))
    assert ("celery_queue_length", ("q",)) not in samples
    assert samples["celery_active_process_count", ("q",)] == 10


def test_names_without_end_do_not_become_series_without_end() -> None:
    metrics, state = Metrics(lambda: Snapshot(1.0)), State()
    for number in range(MAX_LABEL_SETS + 50):
        task, name = f"id-{number}", f"task-{number}"
        _tell(metrics, state, "task-received", task, name)
        _tell(metrics, state, "task-started", task, name)
        _tell(metrics, state, "task-succeeded", task, name, runtime=0.1)
        _tell(metrics, state, "task-failed", task, name, exception=f"ValueError('{number}')")
    samples = _samples(metrics)
    assert samples["celery_task_succeeded_total", ("", "(other)", "")] == 50
    assert len(samples) < 10_000


def test_what_workers_tell_before_the_publisher_is_counted_for_its_queue() -> None:
    metrics, state = Metrics(lambda: Snapshot(1.0)), State()
    _tell(metrics, state, "task-sent", "first", "t", queue="q", hostname="p@h")
    for kind in ("task-received", "task-started", "task-succeeded"):
        _tell(metrics, state, kind, "second", "t", runtime=0.1, timestamp=2.0)
    of = ("w@h", "t", "q")
    assert ("celery_task_succeeded_total", of) not in _samples(metrics)
    _tell(metrics, state, "task-sent", "second", "t", queue="q", hostname="p@h")
    samples = _samples(metrics)
    assert samples["celery_task_succeeded_total", of] == 1
    assert samples["celery_task_queue_wait_time_count", of] == 1
    assert samples["celery_task_runtime_count", of] == 1


def test_a_publisher_that_tells_nothing_is_waited_for_in_vain_and_not_for_long() -> None:
    metrics, state = Metrics(lambda: Snapshot(1.0)), State()
    _tell(metrics, state, "task-received", "early", "t")
    nowhere = ("w@h", "t", "")
    assert _samples(metrics)["celery_task_received_total", nowhere] == 1  # nobody tells
    _tell(metrics, state, "task-sent", "first", "t", queue="q", hostname="p@h")
    _tell(metrics, state, "task-received", "second", "t")
    wait_until(lambda: _samples(metrics)["celery_task_received_total", nowhere] == 2, "its count")
