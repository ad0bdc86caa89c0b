"""The facts that travel between layers: frozen, typed, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Health:
    """One thing that must work, and whether it does. ``took`` is in seconds."""

    name: str
    ok: bool
    detail: str = ""
    took: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Gap:
    """A span of time (Unix seconds) about which nothing is known, and why.

    ``since`` None: from the beginning of time; ``until`` None: it still lasts.
    """

    since: float | None
    until: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment (``at``, Unix seconds).

    ``gaps`` are sentences about what this snapshot could not see.
    """

    at: float
    health: tuple[Health, ...] = ()
    workers: tuple[WorkerSeen, ...] = ()
    queues: tuple[QueueSeen, ...] = ()
    gaps: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether everything that was asked about works."""
        return all(check.ok for check in self.health)
