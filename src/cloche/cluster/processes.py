"""Every process of a stack and every worker beside it, as ``cloche ps`` shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
from celery import Celery

from cloche.broker.connection.probe import reach
from cloche.cluster.control import COMMANDS, Answers, ask_each, describe
from cloche.cluster.existing import ExistingWorker, addresses, confirmed, own_tasks
from cloche.process.events import RestartedWorker
from cloche.process.identity import Identity
from cloche.process.scan import candidates
from cloche.process.status import ProcessState, ProcessStatus
from cloche.process.unsupervised import descendants
from cloche.records import ProcessSeen, Snapshot, WorkerSeen

#: The longest wait for workers' answers, and the time over which CPU use is measured.
_TIMEOUT = 1.0


def processes_seen(
    app: Celery,
    statuses: Iterable[ProcessStatus] = (),
    adopted: Iterable[tuple[str, ExistingWorker]] = (),
    expected: Collection[str] = (),
    hung: Mapping[str, RestartedWorker] | None = None,
) -> Snapshot:
    """Look at everything now. Blocks for a second at most, longer if the broker hangs.

    ``adopted`` are workers that others started and that count, by the name that commands use. Ends
    early once the ``expected`` nodes have answered. ``hung`` are those started anew
    lately, by name.
    """
    statuses, adopted = tuple(statuses), tuple(adopted)
    mains = [status.identity for status in statuses if status.identity is not None]
    mains += [worker.identity for _, worker in adopted]
    found = candidates(_addresses(app))
    before = Usage.of([*mains, *(one.identity for one in found)])
    answers, gaps = _ask(app, expected)
    seen = _seen(answers)
    existing = confirmed(found, answers, own_tasks(app))
    usage = Usage.of([*mains, *(one.identity for one in existing)])
    rows = [_ours(status, seen, usage, before) for status in statuses]
    rows = [replace(row, was_hung=_was_hung(row, hung or {})) for row in rows]
    rows += [_adopted(name, worker, seen, usage, before) for name, worker in adopted]
    known = {row.pid for row in rows}
    rows += [_foreign(one, usage, before) for one in existing if one.pid not in known]
    shown = {(one.name, one.seen.pid) for one in existing}
    shown |= {(row.node or "", row.pid or 0) for row in rows}
    rows += [_elsewhere(one) for one in seen if (one.name, one.pid) not in shown]
    return Snapshot(time.time(), workers=seen, processes=tuple(rows), gaps=gaps)


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


def _was_hung(row: ProcessSeen, hung: Mapping[str, RestartedWorker]) -> str:
    one = hung.get(row.name)
    return one.told() if one else ""


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
            reach(connection, 2)
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


def _ours(
    status: ProcessStatus, seen: Iterable[WorkerSeen], usage: Usage, before: Usage
) -> ProcessSeen:
    pid = status.identity.pid if status.identity else None
    worker = next((one for one in seen if one.pid == pid and _label(one) == status.name), None)
    troubled = status.state in (ProcessState.CRASH_LOOP, ProcessState.BACKING_OFF)
    return ProcessSeen(
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


def _adopted(
    name: str, worker: ExistingWorker, seen: Iterable[WorkerSeen], usage: Usage, before: Usage
) -> ProcessSeen:
    now = next((s for s in seen if (s.name, s.pid) == (worker.name, worker.seen.pid)), None)
    return ProcessSeen(
        name=name,
        kind="adopted",
        state="ready" if now is not None else "silent",
        since=worker.since,
        **_load(worker.identity, usage, before),
        **_work(now or worker.seen),
    )


def _foreign(one: ExistingWorker, usage: Usage, before: Usage) -> ProcessSeen:
    keeper = f"kept by the launcher {one.launcher}" if one.launcher else ""
    return ProcessSeen(
        name=one.name,
        kind="foreign",
        state="ready",
        since=one.since,
        detail=keeper,
        **_load(one.identity, usage, before),
        **_work(one.seen),
    )


def _elsewhere(one: WorkerSeen) -> ProcessSeen:
    return ProcessSeen(
        name=one.name,
        kind="elsewhere",
        state="ready",
        pid=one.pid,
        since=time.time() - one.uptime,
        **_work(one),
    )
