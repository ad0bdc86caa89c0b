"""Who waits for a task whose message is refused is told, as Celery tells of unknown tasks.

Celery stores the failure of a task it does not know (celery/worker/consumer/consumer.py,
``on_unknown_task``) and is silent about a message it cannot read: its result stays PENDING.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery.app.task import Context, get_actual_ignore_result

from cloche.broker import message

logger = logging.getLogger("cloche.transport")


def worker_of(callback: Any) -> Any | None:
    """Celery's consumer (celery.worker.consumer) for which kombu calls ``callback``, if any."""
    consumer = getattr(callback, "__self__", None)
    found = getattr(getattr(consumer, "on_decode_error", None), "__self__", None)
    return found if hasattr(found, "event_dispatcher") and hasattr(found, "app") else None


def tell(worker: Any, channel: Any, raw: bytes, error: Exception) -> None:
    """Store the failure of the task in ``raw``: its result, chord, error callbacks, event.

    From any thread. Of a message without a task's id there is nobody to tell.
    """
    try:
        envelope = message.decode(raw)
    except ValueError:
        return
    tell_of(worker, channel.Message(envelope, channel=channel), error)


def tell_of(worker: Any, refused: Any, error: Exception) -> None:
    """The same of a message as kombu delivers it."""
    try:
        context = _context(refused)
        if context is None:
            return
        app = worker.app
        task = app.tasks.get(context.task) or app.Task()
        ignored = get_actual_ignore_result(task, context)
        task.backend.mark_as_failure(
            context.id,
            error,
            request=context,
            store_result=not ignored or task.store_errors_even_if_ignored,
        )
    except Exception:
        logger.exception("nobody is told that a task was refused: %s", error)
        return

    def send() -> None:
        dispatcher = worker.event_dispatcher
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send("task-failed", uuid=context.id, exception=repr(error))

    # The dispatcher's channel belongs to the thread of the event loop.
    call_soon = getattr(refused.channel.connection, "call_soon", None)
    if call_soon is None:
        send()
    else:
        call_soon(send)


def _context(refused: Any) -> Context | None:
    """The request in a message, as far as it can be read; None if it names no task."""
    fields: dict[str, Any] = dict(refused.headers)
    try:
        body = refused.payload
    except Exception:  # noqa: BLE001 (that may be why it is refused)
        body = None
    if isinstance(body, Mapping):  # protocol 1
        fields = {**body, **fields}
    elif isinstance(body, list | tuple) and len(body) == 3:
        args, kwargs, embed = body
        fields.update(embed if isinstance(embed, Mapping) else {}, args=args, kwargs=kwargs)
    if not (isinstance(fields.get("id"), str) and isinstance(fields.get("task"), str)):
        return None
    properties = refused.properties
    fields.update(
        properties=properties,
        reply_to=properties.get("reply_to"),
        correlation_id=properties.get("correlation_id"),
        delivery_info=refused.delivery_info,
    )
    return Context(fields)
