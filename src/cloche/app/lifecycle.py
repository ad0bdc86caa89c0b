"""What happens when a worker is ready, when a pool process starts, when a worker stops."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.concurrency import get_implementation
from celery.utils.log import get_logger

from cloche.aio.task import unawaited
from cloche.app.outage_reporter import limit_repeats, report_outages
from cloche.app.registration import registration_problems
from cloche.health.answers import check_results, one_line
from cloche.process.systemd import notify
from cloche.settings import mask_url
from cloche.settings.model import WorkerSettings
from cloche.settings.of_app import state_of
from cloche.worker.heartbeat import add_heartbeat
from cloche.worker.recycling import unwanted
from cloche.worker.unpatched import ImportStep

if TYPE_CHECKING:  # a producer is spared it
    from celery.worker.consumer import Consumer

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
            app.steps["consumer"].add(ImportStep)
            answer_in_json(app)
            recycle_as_asked(app, sender)
            add_heartbeat(app)
            report_outages(app)

    def shutting_down(sender: Any, how: str = "", **_: Any) -> None:
        unwanted.set()  # a renewal that is under way would forget the signal
        notify("STOPPING=1")

    # Sent from signal handlers: a second SIGTERM interrupts the handler of the first, in the
    # same thread, and would wait for its lock for ever.
    signals.worker_shutting_down.lock = threading.RLock()
    signals.celeryd_init.connect(quiet_outages, weak=False, dispatch_uid="cloche-repeats")
    signals.worker_init.connect(begins, weak=False, dispatch_uid=f"{uid}-init")
    signals.worker_ready.connect(ready, weak=False, dispatch_uid=f"{uid}-ready")
    signals.worker_shutting_down.connect(shutting_down, weak=False, dispatch_uid="cloche-stopping")
    signals.worker_process_init.connect(fresh_loop, weak=False, dispatch_uid="cloche-loop")


def answer_in_json(app: Celery) -> None:
    """Remote control's answers are plain data. With ``task_serializer = "pickle"`` they would come
    in pickle, which Cloche's own readers decode from nobody."""
    if "json" in (app.conf.accept_content or ("json",)):
        app.control.mailbox.serializer = "json"


def recycle_as_asked(app: Celery, worker: Any) -> None:
    """No renewal of a whole worker after so many tasks, unless somebody asked for it.

    The default is for pool processes: a thousand coroutines may be a tenth of a second's work.
    """
    default = WorkerSettings().max_tasks_per_child
    written = state_of(app).hardened.written.get("worker_max_tasks_per_child")
    pool = get_implementation(worker.pool_cls)
    in_place = _awaits(pool) or getattr(pool, "renews_in_place", False)
    if written == default == worker.max_tasks_per_child and in_place:
        worker.max_tasks_per_child = app.conf.worker_max_tasks_per_child = None


def on_worker_ready(app: Celery, consumer: Consumer) -> None:
    """Verify broker and result backend, print the effective configuration, tell the launcher."""
    for line in banner(app, consumer):
        logger.info(line)
    for note in warnings_of(app):
        logger.warning(note)
    for name in unawaited(app.tasks.values()) if not _awaits(consumer.pool) else ():
        logger.error("%s is an async def and its body will never run: use @cloche.async_task", name)
    if app.conf.result_backend:
        try:
            check_results(app)
        except Exception as error:  # noqa: BLE001 (whatever a backend raises: the worker goes on)
            uri = mask_url(app.conf.result_backend)
            logger.error("the result backend %s does not answer: %s", uri, one_line(error))
    notify(f"READY=1\nSTATUS=consuming {', '.join(sorted(_queues_of(consumer)))}")


def banner(app: Celery, consumer: Consumer) -> list[str]:
    """The effective configuration of a running worker, one fact a line."""
    conf, pool = app.conf, consumer.pool
    said = state_of(app).origin
    return [
        f"worker {consumer.hostname} of app {app.main!r} is ready",
        f"  broker  {consumer.connection.as_uri()}{said('broker.url')}",
        f"  results {mask_url(conf.result_backend or '') or 'none'}{said('results.url')}, "
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
    return lines + list(state_of(app).hardened.notes)


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


def _queues_of(consumer: Consumer) -> list[str]:
    return [queue.name for queue in consumer.task_consumer.queues]
