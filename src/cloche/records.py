"""The facts that travel between layers: frozen, typed, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self

from cloche.plain import moment, utf8


@dataclass(frozen=True, slots=True)
class Health:
    """One thing that must work, and whether it does. ``took`` is in seconds.

    ``warns``: where it does not, work is hidden or late, but goes on.
    """

    name: str
    ok: bool
    detail: str = ""
    took: float = 0.0
    warns: bool = False


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """A broker that was used a moment ago.

    ``url`` is masked. ``server`` is product and version (``valkey 9.1.2``).
    ``persistent`` tells whether messages survive a stop of the server, None where it did
    not say; ``persistence`` tells how (``AOF everysec``). ``policy`` is Redis's
    ``maxmemory-policy``, ``role`` ``master`` or empty. ``took`` is in seconds.
    """

    url: str
    server: str
    persistent: bool | None
    persistence: str
    policy: str
    role: str
    took: float


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """A queue now: messages waiting in it and the workers that consume it.

    ``length`` is None where the broker could not be asked.
    """

    name: str
    length: int | None
    consumers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that answered the last round of questions.

    ``processed`` counts tasks by name since its start; ``uptime`` is in seconds. ``figures`` are
    counts of Cloche's own since its start: stalls, leases_lost, fenced, as far as it tells them.
    """

    name: str
    pid: int
    pool: str
    concurrency: int
    queues: tuple[str, ...]
    active: int
    processed: Mapping[str, int]
    uptime: float
    prefetch: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What is known of one task id. Times are Unix seconds, ``runtime`` seconds."""

    id: str
    name: str | None
    state: str
    worker: str | None = None
    queue: str | None = None
    args: str | None = None
    kwargs: str | None = None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    finished: float | None = None
    runtime: float | None = None
    retries: int = 0

    @classmethod
    def told(cls, **fields: Any) -> Self:
        """Made from what workers and result backends say, whatever that is: texts that UTF-8
        holds, times that a calendar has. One odd task must not hide the others."""
        made: dict[str, Any] = {}
        for name, value in fields.items():
            if name in _TIMES:
                made[name] = moment(value)
            elif name == "retries":
                made[name] = value if isinstance(value, int) and 0 <= value < 2**53 else 0
            else:
                made[name] = None if value is None else utf8(value)
        return cls(**made)


_TIMES = frozenset({"sent", "received", "started", "finished", "runtime"})


@dataclass(frozen=True, slots=True)
class Gap:
    """A span of time (Unix seconds) about which nothing is known, and why.

    ``since`` None: from the beginning of time; ``until`` None: it still lasts.
    """

    since: float | None
    until: float | None
    why: str


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """One process. ``since`` is Unix time (of its state), ``cpu`` percent of one core,
    ``rss`` bytes, both with its children; what nobody knows is None.

    ``kind``: ours; adopted; foreign (ours to see, not started here); elsewhere (another
    machine or user). ``tasks`` are those a stopping worker still waits for. ``was_hung`` says
    why and when the watchdog started it anew, for ten minutes after.
    """

    name: str
    kind: str
    state: str
    pid: int | None = None
    since: float | None = None
    queues: tuple[str, ...] = ()
    pool: str | None = None
    concurrency: int | None = None
    cpu: float | None = None
    rss: int | None = None
    restarts: int | None = None
    active: int | None = None
    processed: int | None = None
    node: str | None = None
    detail: str = ""
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()
    tasks: tuple[Mapping[str, Any], ...] = ()
    was_hung: str = ""

    def fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ScheduleSeen:
    """One schedule. Times are aware; ``last`` None: it never ran, ``next`` None: not known.

    ``missed`` counts the runs that nobody has sent and that are later than ``beat.late``;
    ``known``: the scheduler at work has it too.
    """

    name: str
    task: str
    when: str
    queue: str | None
    source: str
    next: datetime | None
    last: datetime | None
    missed: int
    known: bool = True


@dataclass(frozen=True, slots=True)
class SchedulesSeen:
    """All schedules, and the scheduler that sends them (None: nobody; unknown off Redis)."""

    schedules: tuple[ScheduleSeen, ...]
    scheduler: str | None
    known: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment (``at``, Unix seconds).

    ``gaps`` are sentences about what this snapshot could not see. ``processes`` are those of one
    machine, where they were looked at; ``schedules`` None: they were not, or could not be read.
    """

    at: float
    health: tuple[Health, ...] = ()
    workers: tuple[WorkerSeen, ...] = ()
    queues: tuple[QueueSeen, ...] = ()
    processes: tuple[ProcessSeen, ...] = ()
    schedules: SchedulesSeen | None = None
    gaps: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether everything that was asked about works."""
        return all(check.ok for check in self.health)
