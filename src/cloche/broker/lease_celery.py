"""``inspect stats`` tells what became of a worker's leases."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from cloche.broker import lease_table


def extend_stats() -> None:
    """Add ``leases`` (times lost, deliveries fenced) to the answer, once, in a worker's process."""
    control = sys.modules.get("celery.worker.control")
    if control is None:
        return
    handlers = control.Panel.data
    if not hasattr(handlers["stats"], "knows_leases"):
        handlers["stats"] = _telling(handlers["stats"])


def _telling(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def stats(state: Any, **kwargs: Any) -> Any:
        answer = stock(state, **kwargs)
        leases = lease_table.leases()
        if leases and isinstance(answer, dict):
            answer["leases"] = {
                "lost": sum(lease.losses for lease in leases),
                "fenced": sum(lease.late for lease in leases),
            }
        return answer

    stats.knows_leases = True  # type: ignore[attr-defined]
    return stats
