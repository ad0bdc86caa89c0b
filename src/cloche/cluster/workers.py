"""From the replies of workers to ``WorkerSeen``."""

from __future__ import annotations

from typing import Any

from cloche.cluster.mailbox import Replies
from cloche.records import WorkerSeen

#: The questions that together describe a worker (celery.worker.control).
COMMANDS = ("stats", "active", "active_queues")


def workers_from(replies: Replies) -> tuple[WorkerSeen, ...]:
    """The workers that answered ``stats``, by name."""
    stats = replies.get("stats", {})
    return tuple(
        describe(
            name,
            stats[name],
            replies.get("active", {}).get(name),
            replies.get("active_queues", {}).get(name),
        )
        for name in sorted(stats)
        if isinstance(stats[name], dict) and "error" not in stats[name]
    )


def describe(name: str, stats: dict[str, Any], active: object, queues: object) -> WorkerSeen:
    """One worker, from its replies to the three questions (others' may be missing)."""
    pool = stats.get("pool") or {}
    total = stats.get("total") or {}
    return WorkerSeen(
        name=name,
        pid=int(stats.get("pid") or 0),
        pool=_pool_name(str(pool.get("implementation") or "")),
        concurrency=int(pool.get("max-concurrency") or 0),
        queues=tuple(
            str(queue["name"])
            for queue in (queues if isinstance(queues, list) else ())
            if isinstance(queue, dict) and "name" in queue
        ),
        active=len(active) if isinstance(active, list) else 0,
        processed={str(task): int(count) for task, count in total.items()},
        uptime=float(stats.get("uptime") or 0),
        prefetch=int(stats.get("prefetch_count") or 0),
        figures=_figures(pool, stats.get("leases") or {}),
    )


def _figures(pool: dict[str, Any], leases: dict[str, Any]) -> dict[str, float]:
    told = {
        "stalls": pool.get("stalls"),
        "leases_lost": leases.get("lost"),
        "fenced": leases.get("fenced"),
    }
    return {name: float(count) for name, count in told.items() if count is not None}


def _pool_name(implementation: str) -> str:
    """``celery.concurrency.prefork:TaskPool`` -> ``prefork``, as ``--pool`` calls it."""
    module = implementation.partition(":")[0].rpartition(".")[2]
    return "threads" if module == "thread" else module or "unknown"
