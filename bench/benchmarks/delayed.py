"""Jobs that wait until they are due: what they cost meanwhile, and how late they are.

Most wait throughout. Of others (the "due"), a part becomes due on a queue nobody consumes, where
their arrival is seen apart from what a worker can run; a part is run by the worker.
"""

from __future__ import annotations

import time

from bench.errors import BenchError
from bench.figures import Figures, percentile
from bench.processes import Process
from bench.stage import Case, Stage

_FAR = "3600"  # seconds until the first of those that wait throughout is due …
_FAR_SPREAD = "3600"  # … and the last after it
_SETTLE = 3.0
_MOST_DUE = 100_000
_SPREAD = 60.0  # seconds over which jobs become due
_RUN_RATE = 200  # jobs a second become due for the worker: far below what it can run
_LEAD = 5.0  # seconds from publishing to the first that is due, and more for many
_PUBLISHED = 2_500  # jobs a second, to estimate how long publishing takes on a busy machine
_LOOK = 0.005  # seconds between looks at the queue's length
_REVOKED = 101


def slots(case: Case) -> int:
    """The jobs the worker runs, and one that tells it listens."""
    return 1 + run_by_worker(case.jobs)


def run_by_worker(jobs: int) -> int:
    """How many of the due the worker runs."""
    return min(max(jobs // 100, 20), int(_RUN_RATE * _SPREAD))


def measure(stage: Stage) -> Figures:
    """With one worker, idle at first."""
    with stage.workers() as workers:
        stage.publish("one", range(1))
        stage.wait(lambda: stage.marks.done(0, 1) == 1, workers)
        time.sleep(_SETTLE)
        return {
            **_waiting(stage, workers),
            **_due_at_once(stage),
            **_due_in_turn(stage),
            **_run(stage, workers),
        }


def _waiting(stage: Stage, workers: list[Process]) -> Figures:
    """Rate of publishing; memory and CPU while all wait; time of a revoke."""
    jobs = stage.case.jobs
    memory, resident = _memory(stage), _resident(workers)
    published = stage.publish(
        "delayed", range(jobs), "bench", "--seconds", _FAR, "--spread", _FAR_SPREAD
    )
    time.sleep(_SETTLE)
    taken, grown = _memory(stage) - memory, _resident(workers) - resident
    began, before = time.monotonic(), stage.counters(workers)
    time.sleep(stage.case.idle)
    seconds, after = time.monotonic() - began, stage.counters(workers)
    revoked = stage.publish("revoke", range(_REVOKED))
    return {
        "rate": jobs / published["seconds"],
        "server_bytes": taken / jobs,
        "server_mib": taken / 1024**2,
        "worker_mib": grown,
        "idle_server_percent": (after["server_cpu"] - before["server_cpu"]) / seconds * 100,
        "idle_worker_percent": (after["cpu"] - before["cpu"]) / seconds * 100,
        "revoke_ms": revoked["median"] * 1e3,
    }


def _due_at_once(stage: Stage) -> Figures:
    jobs = _due(stage)
    lead = _LEAD + jobs / _PUBLISHED
    due = time.monotonic() + lead
    _publish(stage, jobs, "at-once", due, 0.0)
    arrived = _arrivals(stage, "at-once", jobs, due + stage.case.deadline)
    return {"promoted": jobs / (arrived[-1] - due), "at_once_worst_s": arrived[-1] - due}


def _due_in_turn(stage: Stage) -> Figures:
    jobs = _due(stage)
    due = time.monotonic() + _LEAD + jobs / _PUBLISHED
    spread = _spread(stage)
    _publish(stage, jobs, "in-turn", due, spread)
    arrived = _arrivals(stage, "in-turn", jobs, due + spread + stage.case.deadline)
    late = [at - (due + spread * number / jobs) for number, at in enumerate(arrived)]
    return {
        "arrival_p50_ms": percentile(late, 0.5) * 1e3,
        "arrival_p99_ms": percentile(late, 0.99) * 1e3,
    }


def _run(stage: Stage, workers: list[Process]) -> Figures:
    jobs = run_by_worker(stage.case.jobs)
    ours = range(1, 1 + jobs)
    due = time.monotonic() + _LEAD + jobs / _PUBLISHED
    spread = jobs / _RUN_RATE
    for number, slot in enumerate(ours):
        stage.marks.expect(slot, due + spread * number / jobs)
    _publish(stage, jobs, "bench", due, spread, first=1)
    stage.wait(lambda: stage.marks.done(1) == jobs, workers)
    late = stage.marks.delays(1)
    return {
        "start_p50_ms": percentile(late, 0.5) * 1e3,
        "start_p99_ms": percentile(late, 0.99) * 1e3,
    }


def _publish(
    stage: Stage, jobs: int, queue: str, due: float, spread: float, first: int = 0
) -> None:
    """The first due at ``due`` (monotonic seconds), the last ``spread`` seconds later."""
    chosen = range(first, first + jobs)
    stage.publish("due", chosen, queue, "--seconds", repr(due), "--spread", repr(spread))
    if time.monotonic() > due:
        raise BenchError("publishing took longer than the jobs were to wait")


def _arrivals(stage: Stage, queue: str, jobs: int, deadline: float) -> list[float]:
    """When (monotonic seconds) each of the jobs was seen on its queue, in order of arrival."""
    arrived: list[float] = []
    while len(arrived) < jobs:
        length = int(stage.server.client.llen(queue))
        now = time.monotonic()
        arrived += [now] * (length - len(arrived))
        if now > deadline:
            raise BenchError(f"{len(arrived)} of {jobs} delayed jobs came to their queue")
        time.sleep(_LOOK)
    return arrived


def _due(stage: Stage) -> int:
    return min(max(stage.case.jobs // 10, 20), _MOST_DUE)


def _spread(stage: Stage) -> float:
    return min(_SPREAD, stage.case.idle)


def _memory(stage: Stage) -> float:
    return float(stage.server.client.info("memory")["used_memory"])


def _resident(workers: list[Process]) -> float:
    return sum(worker.resident() for worker in workers)
