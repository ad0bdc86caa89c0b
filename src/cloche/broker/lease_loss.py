"""When a lease is lost: Celery's worker drops what it fetched and has not started.

Those messages are back in their queues and will run elsewhere. What runs already goes on; its
acknowledgement will be fenced.
"""

from __future__ import annotations

import sys
from typing import Any

from celery.exceptions import TaskRevokedError


class _Dropped:
    """Stands where Celery expects a pool to terminate the job in: no body is run."""

    def terminate_job(self, *_: Any) -> None:
        raise TaskRevokedError("its lease was lost before it started")


def drop_unstarted(taken: frozenset[str]) -> None:
    """Drop reserved requests whose delivery tag is among ``taken``."""
    # Only a Celery worker has loaded it; importing it would cost every producer 0.1 s.
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return
    running = set(state.active_requests)
    for request in list(state.reserved_requests):
        if request not in running and request.message.delivery_tag in taken:
            _drop(state, request)


def _drop(state: Any, request: Any) -> None:
    # Checked by Request.execute_using_pool before it hands the job to a pool, and by
    # Request.on_accepted (in the worker's own thread pools) before the body is run.
    request._already_revoked = True
    request._terminate_on_ack = (_Dropped(), None)
    state.task_ready(request)
    request.message.channel.qos.forget(request.message.delivery_tag)
