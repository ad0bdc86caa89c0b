"""From what was seen of workers, queues and schedules to verdicts on each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from cloche.cluster.schedules import SchedulesSeen
from cloche.process.liveness import doing
from cloche.process.pulse import Pulse
from cloche.records import Health, QueueSeen, WorkerSeen
from cloche.settings import Settings


def judge_workers(
    expected: Mapping[str, Collection[str]],
    seen: Sequence[WorkerSeen],
    here: Sequence[Pulse],
) -> Iterator[Health]:
    """One verdict for each expected worker (name -> queues), and for others that answer.

    ``here`` are the pulses of this run directory: a worker whose only process is busy with a
    task (the solo pool) cannot answer, and yet it works.
    """
    answers = {worker.name.partition("@")[0]: worker for worker in seen}
    beats = {pulse.name: pulse for pulse in here}
    for name, queues in expected.items():
        yield _worker(name, queues, answers.get(name), beats.get(name))
    for name, worker in answers.items():
        if name not in expected:
            yield _worker(name, worker.queues, worker, None)
    if not expected and not answers:
        yield Health("workers", False, "no worker answers")


def _worker(
    name: str, queues: Collection[str], seen: WorkerSeen | None, pulse: Pulse | None
) -> Health:
    subject = f"worker {name}"
    if seen is None:
        if pulse is not None and pulse.trouble() is None and pulse.alone and pulse.active:
            return Health(subject, True, f"{doing(pulse)}; its task keeps it from answering")
        trouble = pulse.trouble() if pulse is not None else None
        return Health(subject, False, trouble or "it does not answer")
    missing = sorted(set(queues) - set(seen.queues))
    if missing:
        return Health(subject, False, f"it does not consume {', '.join(missing)}")
    busy = f"{seen.active} of {seen.concurrency} slots busy"
    return Health(subject, True, f"{busy}, consumes {', '.join(seen.queues)}")


def judge_queues(
    seen: Sequence[QueueSeen], paused: Collection[str], here: Sequence[Pulse]
) -> Iterator[Health]:
    """One verdict for each queue: bad where messages wait and nobody would take them."""
    local = {name for pulse in here if pulse.trouble() is None for name in pulse.queues}
    for queue in seen:
        subject = f"queue {queue.name}"
        taken = bool(queue.consumers) or queue.name in local
        waiting = f"{queue.length or 0} waiting"
        if queue.name in paused:
            yield Health(subject, True, f"{waiting}, paused")
        elif taken:
            yield Health(subject, True, f"{waiting}, {len(queue.consumers) or 1} consume it")
        else:
            detail = f"{waiting} and nobody consumes it" if queue.length else "nobody consumes it"
            yield Health(subject, not queue.length, detail)


def judge_beat(seen: SchedulesSeen, settings: Settings, here: Sequence[Pulse]) -> Health:
    """The verdict on the scheduler: bad where runs are due and nobody sends them."""
    count = len(seen.schedules)
    many = f"{count} {'schedule' if count == 1 else 'schedules'}"
    if not count:
        return Health("beat", True, "nothing is scheduled")
    if not seen.known:
        pulse = next((pulse for pulse in here if pulse.pool == "beat"), None)
        trouble = pulse.trouble() if pulse else "no scheduler here, and this broker knows of none"
        return Health("beat", trouble is None, trouble or f"{many}, sent from here")
    missed = [f"{one.name} ({one.missed})" for one in seen.schedules if one.missed]
    late = f"; missed runs: {', '.join(missed)}" if missed else ""
    if seen.scheduler is None:
        if not settings.beat.enabled and not missed:
            return Health("beat", True, "beat.enabled is false, and nobody sends elsewhere")
        return Health("beat", False, f"nobody sends {many}: start cloche beat{late}")
    return Health("beat", not missed, f"{many}, sent by {seen.scheduler}{late}")
