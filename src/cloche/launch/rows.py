"""What ``cloche ps`` shows: every process of the stack and every worker beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
from celery import Celery

from cloche.cluster.mailbox import Answers, ask_each
from cloche.cluster.workers import COMMANDS, describe
from cloche.launch.adopted import Adopted
from cloche.launch.existing import ExistingWorker, addresses, confirmed, own_tasks
from cloche.process.deaf import DeafWorker
from cloche.process.identity import Identity
from cloche.process.outside import descendants
from cloche.process.scan import candidates
from cloche.process.status import ProcessState, ProcessStatus
from cloche.records import WorkerSeen

#: The longest wait for workers' answers, and the time over which CPU use is measured.
_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One process. ``since`` is Unix time (of its state), ``cpu`` percent of one core,
    ``rss`` bytes, both with its children; what nobody knows is None.

    ``kind``: ours; adopted; foreign (ours to see, not started here); elsewhere (another
    machine or user). ``tasks`` are those a stopping worker still waits for. ``was_deaf`` says
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
    was_deaf: str = ""

    def fields(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Listing:
    """All rows, and sentences about what could not be seen."""

    rows: tuple[Row, ...]
    gaps: tuple[str, ...] = ()


def listing(
    app: Celery,
    statuses: Iterable[ProcessStatus] = (),
    adopted: Iterable[Adopted] = (),
    expected: Collection[str] = (),
    deaf: Mapping[str, DeafWorker] | None = None,
) -> Listing:
    """Look at everything now. Blocks for a second at most, longer if the broker hangs.

    Ends early once the ``expected`` nodes have answered. ``deaf`` are those started anew
    lately, by name.
    """
    statuses, adopted = tuple(statuses), tuple(adopted)
    mains = [status.identity for status in statuses if status.identity is not None]
    mains += [one.worker.identity for one in adopted]
    found = candidates(_addresses(app))
    before = Usage.of([*mains, *(one.identity for one in found)])
    answers, gaps = _ask(app, expected)
    seen = _seen(answers)
    existing = confirmed(found, answers, own_tasks(app))
    usage = Usage.of([*mains, *(one.identity for one in existing)])
    rows = [_ours(status, seen, usage, before) for status in statuses]
    rows = [replace(row, was_deaf=_was_deaf(row, deaf or {})) for row in rows]
    rows += [_adopted(one, seen, usage, before) for one in adopted]
    known = {row.pid for row in rows}
    rows += [_foreign(one, usage, before) for one in existing if one.pid not in known]
    shown = {(one.name, one.seen.pid) for one in existing}
    shown |= {(row.node or "", row.pid or 0) for row in rows}
    rows += [_elsewhere(one) for one in seen if (one.name, one.pid) not in shown]
    return Listing(tuple(rows), gaps)


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and resident bytes of process trees at one moment."""

    at: float
    cpu: Mapping[Identity, float]
    rss: Mapping[Identity, int]

    @classmethod
    def of(cls, mains: Iterable[Identity]) -> Usage:
        cpu: dict[Identity, float] = {}
        rss: dict[Identity, int] = {}
        for main in mains:
            cpu[main], rss[main] = _tree(main)
        return cls(time.monotonic(), cpu, rss)

    def percent(self, main: Identity, before: Usage) -> float | None:
        """CPU use since ``before``, in percent of one core."""
        if main not in before.cpu or self.at <= before.at:
            return None
        used = self.cpu[main] - before.cpu[main]
        return max(0.0, round(100 * used / (self.at - before.at), 1))


def _tree(main: Identity) -> tuple[float, int]:
    cpu, rss = 0.0, 0
    for one in (main, *descendants(main)):
        with suppress(psutil.Error):
            process = psutil.Process(one.pid)
            times = process.cpu_times()
            cpu += times.user + times.system
            rss += process.memory_info().rss
    return cpu, rss


def _was_deaf(row: Row, deaf: Mapping[str, DeafWorker]) -> str:
    one = deaf.get(row.name)
    return one.told(time.time()) if one else ""


def tasks_of(status: ProcessStatus) -> tuple[Mapping[str, Any], ...]:
    """What a stopping worker says it still runs: name, id, since (Unix time)."""
    try:
        return tuple(json.loads(status.told.get("X_TASKS", "[]")))
    except ValueError:
        return ()


def _addresses(app: Celery) -> tuple[tuple[str, int], ...]:
    with app.connection_for_read() as connection:
        return addresses(connection)


def _ask(app: Celery, expected: Collection[str]) -> tuple[Answers, tuple[str, ...]]:
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            commands = (*COMMANDS, "registered")
            return ask_each(app, connection, commands, timeout=_TIMEOUT, expected=expected), ()
    except Exception as error:  # noqa: BLE001 (any transport, any error: a gap)
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (), (f"Workers could not be asked, the broker does not answer: {why}",)


def _seen(answers: Answers) -> tuple[WorkerSeen, ...]:
    others = {(command, node): reply for command, node, reply in answers}
    return tuple(
        describe(node, stats, others.get(("active", node)), others.get(("active_queues", node)))
        for command, node, stats in answers
        if command == "stats" and isinstance(stats, dict) and "error" not in stats
    )


def _work(seen: WorkerSeen | None) -> dict[str, Any]:
    """The columns only the worker itself knows."""
    if seen is None:
        return {}
    return {
        "node": seen.name,
        "queues": seen.queues,
        "pool": seen.pool,
        "concurrency": seen.concurrency,
        "active": seen.active,
        "processed": sum(seen.processed.values()),
    }


def _load(main: Identity | None, usage: Usage, before: Usage) -> dict[str, Any]:
    if main is None or main not in usage.rss:
        return {}
    return {"pid": main.pid, "cpu": usage.percent(main, before), "rss": usage.rss[main]}


def _ours(status: ProcessStatus, seen: Iterable[WorkerSeen], usage: Usage, before: Usage) -> Row:
    pid = status.identity.pid if status.identity else None
    worker = next((one for one in seen if one.pid == pid and _label(one) == status.name), None)
    troubled = status.state in (ProcessState.CRASH_LOOP, ProcessState.BACKING_OFF)
    return Row(
        name=status.name,
        kind="ours",
        state=status.state.value,
        since=status.since,
        restarts=status.restarts,
        detail=status.detail,
        exit_code=status.exit_code,
        last_lines=status.last_lines[-5:] if troubled else (),
        tasks=tasks_of(status),
        **_load(status.identity, usage, before),
        **_work(worker),
    )


def _label(seen: WorkerSeen) -> str:
    return seen.name.partition("@")[0]


def _adopted(one: Adopted, seen: Iterable[WorkerSeen], usage: Usage, before: Usage) -> Row:
    worker = one.worker
    now = next((s for s in seen if (s.name, s.pid) == (worker.name, worker.seen.pid)), None)
    return Row(
        name=one.name,
        kind="adopted",
        state="ready" if now is not None else "silent",
        since=worker.since,
        **_load(worker.identity, usage, before),
        **_work(now or worker.seen),
    )


def _foreign(one: ExistingWorker, usage: Usage, before: Usage) -> Row:
    keeper = f"kept by the launcher {one.launcher}" if one.launcher else ""
    return Row(
        name=one.name,
        kind="foreign",
        state="ready",
        since=one.since,
        detail=keeper,
        **_load(one.identity, usage, before),
        **_work(one.seen),
    )


def _elsewhere(one: WorkerSeen) -> Row:
    return Row(
        name=one.name,
        kind="elsewhere",
        state="ready",
        pid=one.pid,
        since=time.time() - one.uptime,
        **_work(one),
    )
