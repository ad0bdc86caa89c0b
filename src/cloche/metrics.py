"""``/metrics`` for Prometheus, from what the dashboard already knows: no scrape asks the broker.

Task figures carry the names of celery-exporter, which existing Grafana dashboards expect. They
count the events that were seen; :func:`cloche_event_gaps` tells how often nobody was listening.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from celery.events.state import Task
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cloche.plain import moment, utf8
from cloche.records import Gap, Snapshot, WorkerSeen

#: Label sets of tasks kept apart; each is some 40 series, and a scrape should stay below 10,000.
MAX_LABEL_SETS = 240
#: Where task names, workers and queues beyond that are counted together.
OTHER = ("(other)", "", "")
LABELS = ("name", "hostname", "queue_name")
#: Seconds; from a no-op to a task of an hour.
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)

#: Seconds, and tasks, that events may wait for the word which queue their task was sent to.
QUEUE_TIMEOUT, MAX_WAITING = 1.0, 10_000

_COUNTED = {
    "task-sent": "Tasks published",
    "task-received": "Tasks received by a worker",
    "task-started": "Tasks started",
    "task-succeeded": "Tasks that returned",
    "task-failed": "Tasks that raised",
    "task-rejected": "Tasks rejected",
    "task-revoked": "Tasks revoked",
    "task-retried": "Tasks that are tried again",
}
#: (metric, help, what of a worker it shows)
_WORKERS: tuple[tuple[str, str, Callable[[WorkerSeen], float]], ...] = (
    ("celery_worker_up", "Whether the worker answers", lambda _: 1),
    ("celery_worker_tasks_active", "Tasks the worker runs now", lambda w: w.active),
)
_WORKER_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("cloche_loop_stalls", "Times a task blocked the worker's event loop", "stalls"),
    ("cloche_leases_lost", "Times the worker lost its lease", "leases_lost"),
    ("cloche_fenced_acks", "Deliveries settled after their lease was lost", "fenced"),
)


class Metrics:
    """Counts events as they come (:meth:`event`) and shows a snapshot (:meth:`text`).

    ``snapshot`` and ``gaps`` are read at each scrape; both must answer at once.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], gaps: Callable[[], Sequence[Gap]] = tuple
    ) -> None:
        self._registry = CollectorRegistry()
        self._known: set[tuple[str, str, str]] = set()
        self._counters = {
            kind: Counter(
                f"celery_{kind.replace('-', '_')}",
                text,
                (*LABELS, "exception") if kind == "task-failed" else LABELS,
                registry=self._registry,
            )
            for kind, text in _COUNTED.items()
        }
        self._runtime = self._histogram("celery_task_runtime", "Seconds a task ran")
        self._wait = self._histogram(
            "celery_task_queue_wait_time", "Seconds from publish to start of a task"
        )
        self._early = _Early(self._count)
        self._registry.register(_Now(snapshot, gaps))

    def event(self, event: Mapping[str, Any], task: Task | None) -> None:
        """Count one event; ``task`` is what is known of its task with it, None if no task's."""
        if event["type"] in self._counters and task is not None:
            self._early.event(event, task)

    def _count(self, event: Mapping[str, Any], task: Task) -> None:
        counter = self._counters[event["type"]]
        labels = self._labels(task, event)
        if event["type"] == "task-failed":
            counter.labels(*labels, _exception_name(event.get("exception"))).inc()
        else:
            counter.labels(*labels).inc()
        if event["type"] == "task-started" and task.sent and not task.retries:
            # Clocks of two machines: a negative wait is none.
            self._wait.labels(*labels).observe(max(0.0, event["timestamp"] - task.sent))
        elif event["type"] == "task-succeeded" and moment(event.get("runtime")) is not None:
            self._runtime.labels(*labels).observe(event["runtime"])

    def text(self) -> bytes:
        """The exposition in Prometheus's text format, version 0.0.4."""
        self._early.expire()
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, LABELS, buckets=BUCKETS, registry=self._registry)

    def _labels(self, task: Task, event: Mapping[str, Any]) -> tuple[str, str, str]:
        queue = task.__dict__.get("queue") or ""
        labels = (utf8(task.name or "unknown"), utf8(event.get("hostname") or ""), utf8(queue))
        if labels not in self._known:
            if len(self._known) >= MAX_LABEL_SETS:
                return OTHER
            self._known.add(labels)
        return labels


class _Early:
    """Passes events on to ``count``, once it is known what queue their task was sent to.

    Only the publisher's event tells that, and it comes by another way than those of workers:
    of a short task it may be the last to arrive. Where publishers send none nothing waits.
    """

    def __init__(self, count: Callable[[Mapping[str, Any], Task], None]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._told = False
        self._held: dict[str, list[tuple[Mapping[str, Any], Task]]] = {}
        self._order: deque[tuple[float, str]] = deque()

    def event(self, event: Mapping[str, Any], task: Task) -> None:
        """Count it now or later."""
        with self._lock:
            self._expire()
            if event["type"] == "task-sent":
                self._told = True
                self._count(event, task)
                self._release(task.uuid)
            elif self._told and not task.__dict__.get("queue"):
                self._hold(event, task)
            else:
                self._count(event, task)

    def expire(self) -> None:
        """Count what has waited for long enough."""
        with self._lock:
            self._expire()

    def _hold(self, event: Mapping[str, Any], task: Task) -> None:
        held = self._held.get(task.uuid)
        if held is None:
            held = self._held[task.uuid] = []
            self._order.append((time.monotonic(), task.uuid))
        held.append((event, task))

    def _expire(self) -> None:
        since = time.monotonic() - QUEUE_TIMEOUT
        while self._order and (self._order[0][0] < since or len(self._order) > MAX_WAITING):
            self._release(self._order.popleft()[1])

    def _release(self, task_id: str) -> None:
        for event, task in self._held.pop(task_id, ()):
            self._count(event, task)


class _Now(Collector):
    """The gauges: what the last look at the cluster saw."""

    def __init__(self, snapshot: Callable[[], Snapshot], gaps: Callable[[], Sequence[Gap]]) -> None:
        self._snapshot = snapshot
        self._gaps = gaps
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def describe(self) -> Iterator[Any]:
        """Nothing beforehand: registering must not ask for a snapshot."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        now = self._snapshot()
        yield from self._of_workers(now)
        yield from _of_queues(now)
        yield CounterMetricFamily(
            "cloche_event_gaps", "Spans in which events may have been missed", len(self._gaps())
        )

    def _of_workers(self, now: Snapshot) -> Iterator[Any]:
        for name, text, of in _WORKERS:
            family = GaugeMetricFamily(name, text, labels=["hostname"])
            for worker in now.workers:
                family.add_metric([worker.name], of(worker))
            if name == "celery_worker_up":
                for gone in self._gone(now):
                    family.add_metric([gone], 0)
            yield family
        for name, text, figure in _WORKER_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["hostname"])
            for worker in now.workers:
                if figure in worker.figures:
                    counter.add_metric([worker.name], worker.figures[figure])
            yield counter

    def _gone(self, now: Snapshot) -> list[str]:
        """Workers that answered before and do not now, at most a hundred of them."""
        present = {worker.name for worker in now.workers}
        with self._lock:
            self._seen |= present
            gone = sorted(self._seen - present)
            self._seen = present | set(gone[:100])
        return gone[:100]


def _of_queues(now: Snapshot) -> Iterator[Any]:
    length = GaugeMetricFamily("celery_queue_length", "Messages that wait", labels=["queue_name"])
    counts = {
        kind: GaugeMetricFamily(f"celery_active_{kind}_count", text, labels=["queue_name"])
        for kind, text in (
            ("consumer", "Consumers of the queue"),
            ("worker", "Workers that consume the queue"),
            ("process", "Tasks that the workers of the queue can run at once"),
        )
    }
    slots = {worker.name: worker.concurrency for worker in now.workers}
    for queue in now.queues:
        if queue.length is not None:
            length.add_metric([queue.name], queue.length)
        workers = set(queue.consumers)
        counts["consumer"].add_metric([queue.name], len(queue.consumers))
        counts["worker"].add_metric([queue.name], len(workers))
        counts["process"].add_metric([queue.name], sum(slots.get(name, 0) for name in workers))
    yield length
    yield from counts.values()


def _exception_name(told: object) -> str:
    """``ValueError('no')`` -> ``ValueError``: what it says would be a series of its own each."""
    return utf8(told or "").partition("(")[0][:80]
