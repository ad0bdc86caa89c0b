"""The registry of checks: what must hold of a running system, and how each thing is judged.

A check is one line of :data:`CHECKS` and a function from a :class:`Scene` to verdicts. Commands,
probes and pages are views: they choose kinds, or only what is :attr:`Check.needed`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cloche.health.answers import one_line
from cloche.process.events import RestartedWorker
from cloche.process.heartbeat import Heartbeat, doing
from cloche.records import Health, QueueSeen, SchedulesSeen, Snapshot, WorkerSeen
from cloche.settings import Settings


@dataclass(frozen=True, slots=True)
class Scene:
    """What was seen, for checks to judge.

    ``expected``: workers that should be there, name -> queues; where none are named those of this
    run directory. ``here``: heartbeats in it. ``paused`` is asked when it is needed, and may raise.
    ``restarts``: workers that hung lately, by name. ``silent``: workers that work and send no
    events.
    """

    settings: Settings
    snapshot: Snapshot
    expected: Mapping[str, Collection[str]] = field(default_factory=dict)
    here: Sequence[Heartbeat] = ()
    paused: Callable[[], Collection[str]] = frozenset
    restarts: Mapping[str, RestartedWorker] = field(default_factory=dict)
    silent: Collection[str] = ()

    @property
    def blind(self) -> bool:
        """Whether workers and queues could not be seen at all."""
        return bool(self.snapshot.gaps) and not self.snapshot.workers


@dataclass(frozen=True, slots=True)
class Check:
    """``kind`` is its name on the command line, ``look`` gives its verdicts.

    ``needed``: no process is ready without it.
    """

    kind: str
    look: Callable[[Scene], Iterable[Health]]
    needed: bool = False


def findings(scene: Scene, kinds: Collection[str]) -> Iterator[Health]:
    """The verdicts of all checks of these ``kinds``. A check that fails itself is a bad verdict."""
    for check in CHECKS:
        if check.kind not in kinds:
            continue
        try:
            yield from tuple(check.look(scene))
        except Exception as error:  # noqa: BLE001 (a check may fail in any way; that is the verdict)
            yield Health(check.kind, False, one_line(error))


def _answered(kind: str) -> Check:
    """What the snapshot has asked already (:func:`cloche.health.answers.needed`)."""
    return Check(
        kind, lambda scene: [one for one in scene.snapshot.health if one.name == kind], needed=True
    )


def _workers(scene: Scene) -> Iterator[Health]:
    if scene.blind:
        yield Health("workers", False, scene.snapshot.gaps[0])
        return
    yield from judge_workers(scene.expected, scene.snapshot.workers, scene.here)


def _queues(scene: Scene) -> Iterator[Health]:
    if not scene.blind:
        yield from judge_queues(scene.snapshot.queues, scene.paused(), scene.here)


def _beat(scene: Scene) -> Iterator[Health]:
    if scene.snapshot.schedules is not None:
        yield judge_beat(scene.snapshot.schedules, scene.settings, scene.here)


def _events(scene: Scene) -> Iterator[Health]:
    for name in scene.silent:
        detail = "it runs tasks but sends no events, so that they are not shown: start it with -E"
        yield Health(f"worker {name}", False, detail, warns=True)


def _restarts(scene: Scene) -> Iterator[Health]:
    for one in scene.restarts.values():
        detail = f"{one.told()}; its stacks are in the run directory's stacks"
        yield Health(f"worker {one.name}", False, detail, warns=True)


def _others(scene: Scene) -> Iterator[Health]:
    """What else somebody has the cluster's reader ask."""
    known = {check.kind for check in CHECKS}
    return (one for one in scene.snapshot.health if one.name not in known)


#: In the order in which they are told.
CHECKS: tuple[Check, ...] = (
    _answered("broker"),
    _answered("results"),
    _answered("database"),
    Check("workers", _workers),
    Check("queues", _queues),
    Check("beat", _beat),
    Check("events", _events),
    Check("restarts", _restarts),
    Check("others", _others),
)

#: Kinds of what any process needs to be ready, as ``/readyz`` tells.
NEEDED = tuple(check.kind for check in CHECKS if check.needed)


def judge_workers(
    expected: Mapping[str, Collection[str]],
    seen: Sequence[WorkerSeen],
    here: Sequence[Heartbeat],
) -> Iterator[Health]:
    """One verdict for each expected worker (name -> queues), and for others that answer.

    ``here`` are the heartbeats of this run directory: a worker whose only process is busy with a
    task (the solo pool) cannot answer, and yet it works.
    """
    answers = {worker.name.partition("@")[0]: worker for worker in seen}
    beats = {beat.name: beat for beat in here}
    for name, queues in expected.items():
        yield _worker(name, queues, answers.get(name), beats.get(name))
    for name, worker in answers.items():
        if name not in expected:
            yield _worker(name, worker.queues, worker, None)
    if not expected and not answers:
        yield Health(
            "workers", False, "no worker answers: start one with cloche up or celery worker"
        )


def _worker(
    name: str, queues: Collection[str], seen: WorkerSeen | None, beat: Heartbeat | None
) -> Health:
    subject = f"worker {name}"
    if seen is None:
        if beat is not None and beat.trouble() is None and beat.alone and beat.active:
            return Health(subject, True, f"{doing(beat)}; its task keeps it from answering")
        trouble = beat.trouble() if beat is not None else None
        return Health(subject, False, trouble or "it does not answer")
    # Another application at this broker may have a worker of this name, whose answers are
    # taken for ours: what runs here says itself what it consumes.
    here = beat.queues if beat is not None and beat.trouble() is None else ()
    missing = sorted(set(queues) - {*seen.queues, *here})
    if missing:
        return Health(subject, False, f"it does not consume {', '.join(missing)}")
    busy = f"{seen.active} of {seen.concurrency} slots busy"
    return Health(subject, True, f"{busy}, consumes {', '.join(seen.queues)}")


def judge_queues(
    seen: Sequence[QueueSeen], paused: Collection[str], here: Sequence[Heartbeat]
) -> Iterator[Health]:
    """One verdict for each queue: bad where messages wait and nobody would take them."""
    local = {name for beat in here if beat.trouble() is None for name in beat.queues}
    for queue in seen:
        subject = f"queue {queue.name}"
        taken = bool(queue.consumers) or queue.name in local
        waiting = f"{queue.length or 0} waiting"
        if queue.name in paused:
            yield Health(subject, True, f"{waiting}, paused")
        elif taken:
            count = len(queue.consumers) or 1
            takers = "1 worker consumes" if count == 1 else f"{count} workers consume"
            yield Health(subject, True, f"{waiting}, {takers} it")
        else:
            detail = f"{waiting} and nobody consumes it" if queue.length else "nobody consumes it"
            yield Health(subject, not queue.length, detail)


def judge_beat(seen: SchedulesSeen, settings: Settings, here: Sequence[Heartbeat]) -> Health:
    """The verdict on the scheduler: bad where runs are due and nobody sends them."""
    count = len(seen.schedules)
    many = f"{count} {'schedule' if count == 1 else 'schedules'}"
    if not count:
        return Health("beat", True, "nothing is scheduled")
    if not seen.known:
        beat = next((beat for beat in here if beat.pool == "beat"), None)
        trouble = beat.trouble() if beat else "no scheduler here, and this broker knows of none"
        return Health("beat", trouble is None, trouble or f"{many}, sent from here")
    missed = [f"{one.name} ({one.missed})" for one in seen.schedules if one.missed]
    late = f"; missed runs: {', '.join(missed)}" if missed else ""
    if seen.scheduler is None:
        if not settings.beat.enabled and not missed:
            return Health("beat", True, "beat.enabled is false, and nobody sends elsewhere")
        return Health("beat", False, f"nobody sends {many}: start cloche beat{late}")
    unknown = [one.name for one in seen.schedules if not one.known]
    if unknown:
        detail = f"{seen.scheduler} does not send {', '.join(unknown)}{late}: if it is another"
        return Health("beat", False, f"{detail} application's, give one of them a beat.name")
    return Health("beat", not missed, f"{many}, sent by {seen.scheduler}{late}")
