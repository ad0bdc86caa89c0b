"""A run told from its records: its steps, one inside the other, what took how long, where
nothing was heard. Pure: records in, a `Trace` out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cloche.logs.context import WITHIN
from cloche.logs.record import LogRecord

#: Records kept of a run, and bars kept of a step; what is more is counted.
RECORDS, SPANS = 1000, 200
#: Nothing heard for so many seconds, and for this share of the run, is a gap.
QUIET, SHARE = 1.0, 0.05
_BAD = frozenset({"error", "critical"})
_OPEN, _RETRY = "started", "retry"
#: What a step's own last record says; see `cloche.logs.step`.
_ENDS = frozenset({"done", "failed", _RETRY, "cancelled", "left"})


@dataclass(frozen=True, slots=True)
class Span:
    """One time a step ran: seconds of the epoch; ``end`` None while it runs."""

    begin: float
    end: float | None
    status: str
    label: str


@dataclass(slots=True)
class StepTrace:
    """What a run's records say of one step; ``busy_ms`` is the sum of its spans.

    Spans come from the records that say the step began and ended (``formal``), else from whatever
    records of it have a duration.
    """

    path: str
    first: float
    last: float
    records: int = 0
    errors: int = 0
    retries: int = 0
    busy_ms: float = 0.0
    slowest_ms: float = 0.0
    finished: int = 0
    formal: bool = False
    spans: list[Span] = field(default_factory=list)
    open: dict[str, Span] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(WITHIN)[2]

    @property
    def depth(self) -> int:
        """How many steps it is inside."""
        return self.path.count(WITHIN)

    @property
    def state(self) -> str:
        """``failed``, ``running``, ``done``, or ``seen``: its records tell no more."""
        if self.errors:
            return "failed"
        if self.open:
            return "running"
        return "done" if self.finished else "seen"


@dataclass(frozen=True, slots=True)
class TraceGap:
    """Nobody wrote anything between these times (seconds of the epoch), and no step is known to
    have run all the while."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since


@dataclass(frozen=True, slots=True)
class Trace:
    """A run. ``records`` are its first ones in order, ``total`` is how many were read;
    ``complete`` says whether that is all of them."""

    run_id: str
    status: str
    first: float
    last: float
    total: int
    complete: bool
    levels: dict[str, int]
    agents: dict[str, int]
    steps: tuple[StepTrace, ...]
    gaps: tuple[TraceGap, ...]
    records: tuple[LogRecord, ...]

    @property
    def seconds(self) -> float:
        """From its first sign of life to its last."""
        return self.last - self.first


def trace_of(run_id: str, records: Iterable[LogRecord], *, most: int) -> Trace | None:
    """The trace of a run from its records, oldest first; None if there are none.

    ``most`` records mean that there may be more.
    """
    fold = _Fold()
    for record in records:
        fold.add(record)
    return fold.result(run_id, most)


class _Fold:
    def __init__(self) -> None:
        self._steps: dict[str, StepTrace] = {}
        self._kept: list[LogRecord] = []
        self._levels: Counter[str] = Counter()
        self._agents: Counter[str] = Counter()
        self._quiet: list[TraceGap] = []
        self._status = ""
        self._total = 0
        self._first = self._last = 0.0

    def add(self, record: LogRecord) -> None:
        at = record.time.timestamp()
        begin = at - (record.duration_ms or 0.0) / 1000
        if not self._total:
            self._first = self._last = begin
        elif begin - self._last >= QUIET:
            self._quiet.append(TraceGap(self._last, begin))
        self._first = min(self._first, begin)
        self._last = max(self._last, at)
        self._total += 1
        self._levels[record.level] += 1
        if record.agent:
            self._agents[record.agent] += 1
        if len(self._kept) < RECORDS:
            self._kept.append(record)
        if record.step:
            self._add_to_step(record, begin, at)
        else:
            self._status = str((record.details or {}).get("status", self._status))

    def _add_to_step(self, record: LogRecord, begin: float, at: float) -> None:
        step = self._step(record.step or "", begin, at)
        step.records += 1
        step.errors += record.level in _BAD
        status = str((record.details or {}).get("status", ""))
        label = " · ".join(part for part in (record.concept_id, record.agent) if part)
        if not step.formal and (status == _OPEN or status in _ENDS):
            step.formal, step.busy_ms, step.slowest_ms, step.finished = True, 0.0, 0.0, 0
            step.spans.clear()
        if status == _OPEN:
            step.open[label] = Span(at, None, "running", label)
        elif record.duration_ms is not None and (status in _ENDS or not step.formal):
            step.open.pop(label, None)
            step.retries += status == _RETRY
            step.finished += 1
            step.busy_ms += record.duration_ms
            step.slowest_ms = max(step.slowest_ms, record.duration_ms)
            if len(step.spans) < SPANS:
                kind = "failed" if record.level in _BAD else status or "done"
                step.spans.append(Span(begin, at, kind, label or record.message))

    def _step(self, path: str, begin: float, at: float) -> StepTrace:
        """The step of that path; those around it are there too, and as long as it is."""
        outer, within, _ = path.rpartition(WITHIN)
        if within:
            self._step(outer, begin, at)
        step = self._steps.setdefault(path, StepTrace(path, begin, at))
        step.first, step.last = min(step.first, begin), max(step.last, at)
        return step

    def result(self, run_id: str, most: int) -> Trace | None:
        if not self._total:
            return None
        return Trace(
            run_id=run_id,
            status=self._status,
            first=self._first,
            last=self._last,
            total=self._total,
            complete=self._total < most,
            levels=dict(self._levels.most_common()),
            agents=dict(self._agents.most_common()),
            steps=_nested(self._steps),
            gaps=self._gaps(),
            records=tuple(self._kept),
        )

    def _gaps(self) -> tuple[TraceGap, ...]:
        least = SHARE * (self._last - self._first)
        spans = [
            (span.begin, self._last if span.end is None else span.end)
            for step in self._steps.values()
            for span in (*step.spans, *step.open.values())
        ]
        return tuple(
            gap
            for gap in self._quiet
            if gap.seconds >= least
            and not any(begin <= gap.since and end >= gap.until for begin, end in spans)
        )


def _nested(steps: dict[str, StepTrace]) -> tuple[StepTrace, ...]:
    """Steps by their beginning, each followed by those inside it."""

    def place(step: StepTrace) -> list[tuple[float, str]]:
        parts = step.path.split(WITHIN)
        paths = (WITHIN.join(parts[: number + 1]) for number in range(len(parts)))
        return [(steps[path].first, path) for path in paths]

    return tuple(sorted(steps.values(), key=place))
