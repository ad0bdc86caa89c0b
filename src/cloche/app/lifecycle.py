"""What happens when a worker is ready, when a pool process starts, when a worker stops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from celery.concurrency import get_implementation
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from cloche.aio.check import unawaited
from cloche.aio.renewal import unwanted
from cloche.app.pulse import feel_pulse
from cloche.app.registration import registration_problems
from cloche.app.repeats import limit_repeats
from cloche.app.voices import give_voices
from cloche.process.notify import notify
from cloche.settings import mask_url
from cloche.settings.model import WorkerSettings

logger = get_logger(__name__)


def connect_lifecycle(app: Celery) -> None:
    """Attach the handlers below for this application; again and again is harmless.

    Celery's signals are global: a handler that serves one application looks at the sender.
    """
    uid = f"cloche-{id(app)}"

    def ready(sender: Any, **_: Any) -> None:
        if sender.app is app:
            on_worker_ready(app, sender)

    def begins(sender: Any, **_: Any) -> None:
        if sender.app is app:
            recycle_as_asked(app, sender)
            feel_pulse(app)
            give_voices(app)

    def shutting_down(sender: Any, how: str = "", **_: Any) -> None:
        unwanted.set()  # a renewal that is under way would forget the signal
        notify("STOPPING=1")

    signals.celeryd_init.connect(quiet_outages, weak=False, dispatch_uid="cloche-repeats")
    signals.worker_init.connect(begins, weak=False, dispatch_uid=f"{uid}-init")
    signals.worker_ready.connect(ready, weak=False, dispatch_uid=f"{uid}-ready")
    signals.worker_shutting_down.connect(shutting_down, weak=False, dispatch_uid="cloche-stopping")
    signals.worker_process_init.connect(fresh_loop, weak=False, dispatch_uid="cloche-loop")


def recycle_as_asked(app: Celery, worker: Any) -> None:
    """No renewal of a whole worker after so many tasks, unless somebody asked for it.

    The default is for pool processes: a thousand coroutines may be a tenth of a second's work.
    """
    default = WorkerSettings().max_tasks_per_child
    hardened = getattr(app, "cloche_hardened", None)
    written = hardened.written.get("worker_max_tasks_per_child") if hardened else None
    pool = get_implementation(worker.pool_cls)
    in_place = _awaits(pool) or getattr(pool, "renews_in_place", False)
    if written == default == worker.max_tasks_per_child and in_place:
        worker.max_tasks_per_child = app.conf.worker_max_tasks_per_child = None


def on_worker_ready(app: Celery, consumer: Any) -> None:
    """Verify broker and result backend, print the effective configuration, tell the launcher."""
    for line in banner(app, consumer):
        logger.info(line)
    for note in warnings_of(app):
        logger.warning(note)
    for name in unawaited(app.tasks.values()) if not _awaits(consumer.pool) else ():
        logger.error("%s is an async def and its body will never run: use @cloche.async_task", name)
    problem = result_backend_problem(app)
    if problem:
        logger.error(problem)
    notify(f"READY=1\nSTATUS=consuming {', '.join(sorted(_queues_of(consumer)))}")


def banner(app: Celery, consumer: Any) -> list[str]:
    """The effective configuration of a running worker, one fact a line."""
    conf, pool = app.conf, consumer.pool
    said: Callable[[str], str] = getattr(app, "cloche_origin", lambda key: "")
    return [
        f"worker {consumer.hostname} of app {app.main!r} is ready",
        f"  broker  {consumer.connection.as_uri()}{said('broker.url')}",
        f"  results {mask_url(conf.result_backend or 'none')}{said('results.url')}, "
        f"kept {conf.result_expires}{said('results.expires')}",
        f"  pool    {type(pool).__module__} × {pool.limit}, "
        f"prefetch {conf.worker_prefetch_multiplier} per slot",
        f"  queues  {', '.join(sorted(_queues_of(consumer)))}",
        f"  limits  soft {conf.task_soft_time_limit or 'none'}{said('tasks.soft_time_limit')}, "
        f"hard {conf.task_time_limit or 'none'}{said('tasks.time_limit')} (families refine), "
        f"recycle after {conf.worker_max_tasks_per_child or '∞'} tasks "
        f"or {conf.worker_max_memory_per_child or '∞'} KiB",
        f"  acks    {'late' if conf.task_acks_late else 'early'}{said('tasks.acks_late')}, "
        f"events {'on' if conf.worker_send_task_events else 'off'}",
    ]


def warnings_of(app: Celery) -> list[str]:
    """Tasks that are missing or misnamed, a dangerous user, and what hardening could not reach."""
    lines = list(registration_problems(app))
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        lines.append("this worker runs as root, and so does every task: use another user")
    return lines + list(app.cloche_hardened.notes)


def result_backend_problem(app: Celery) -> str | None:
    """Why results cannot be stored, or None. Asks for one id that does not exist."""
    if not app.conf.result_backend:
        return None
    backend = app.backend
    try:
        backend.get_state("cloche-readiness-probe")
    except (*backend.connection_errors, OperationalError, OSError) as error:
        uri = mask_url(app.conf.result_backend)
        return f"the result backend {uri} does not answer: {error}"
    except NotImplementedError:
        return None
    return None


def quiet_outages(**_: Any) -> None:
    """A worker that waits for its broker says so, and not at every try."""
    limit_repeats()


def fresh_loop(**_: Any) -> None:
    """Give a forked pool process an event loop of its own; the parent's must not be used."""
    asyncio.set_event_loop(asyncio.new_event_loop())


def _awaits(pool: Any) -> bool:
    """Whether ``pool``, or that class of pools, runs coroutines itself."""
    kind = pool if isinstance(pool, type) else type(pool)
    return kind.__module__ == "cloche.aio.pool"


def _queues_of(consumer: Any) -> list[str]:
    return [queue.name for queue in consumer.task_consumer.queues]
