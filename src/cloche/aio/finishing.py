"""What follows a success: link callbacks, the rest of the chain, and runs seen before.

Ports of the closures in ``celery.app.trace.build_tracer``; they block, so a tracer has them
called off the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery, Task, group
from celery.app import trace as stock
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import BackendGetMetaError, Reject
from celery.result import AsyncResult
from celery.states import SUCCESS
from celery.worker.state import successful_requests


def call_back(app: Celery, retval: Any, context: Context, inherits_priority: bool) -> None:
    """Publish the link callbacks and the next step of the chain."""
    given = {
        "parent_id": context.id,
        "root_id": context.root_id or context.id,
        "priority": _priority(context, inherits_priority),
    }
    callbacks: Sequence[Any] = context.callbacks or ()
    if len(callbacks) > 1:
        _call_all(app, retval, callbacks, given)
    elif callbacks:
        _publish(app, maybe_signature(callbacks[0], app=app), retval, given)
    if context.chain:
        following = maybe_signature(context.chain[-1], app=app)
        _publish(app, following, retval, {"chain": context.chain[:-1], **given})


def _call_all(app: Celery, retval: Any, callbacks: Sequence[Any], given: dict[str, Any]) -> None:
    # Groups store their own trail, so each is called apart (celery/celery#1936).
    all_of_them = [maybe_signature(callback, app=app) for callback in callbacks]
    single = [one for one in all_of_them if not isinstance(one, group)]
    for one in all_of_them:
        if isinstance(one, group):
            _publish(app, one, retval, given)
    if single:
        _publish(app, group(single, app=app), retval, given)


def _publish(app: Celery, signature: Any, retval: Any, given: dict[str, Any]) -> None:
    app.amqp._retry_publish(signature.apply_async, (retval,), **given)


def _priority(context: Context, inherits: bool) -> Any:
    return (context.delivery_info or {}).get("priority") if inherits else None


def succeeded_before(app: Celery, task: Task, context: Context, inherits_priority: bool) -> bool:
    """Whether a redelivered task has succeeded already; its callbacks are made up for."""
    if context.id in successful_requests:
        return True
    result = AsyncResult(context.id, app=app)
    try:
        if result.state != SUCCESS:
            return False
    except BackendGetMetaError:
        return False
    name = stock.get_task_name(context, task.name)
    why = "Task already completed successfully."
    stock.info(stock.LOG_IGNORED, {"id": context.id, "name": name, "description": why})
    try:
        meta = result._get_task_meta()
        if not meta.get("children"):
            call_back(app, meta.get("result"), context, inherits_priority)
        successful_requests.add(context.id)
    except MemoryError:
        raise
    except Exception as exc:
        stock.logger.exception("Failed to dispatch what follows deduplicated task %s", context.id)
        raise Reject(exc, requeue=True) from exc
    return True
