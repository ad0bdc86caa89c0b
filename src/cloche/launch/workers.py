"""Workers: which ones there are, and how one of them runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial

from celery import Celery
from celery.platforms import SecurityWarning
from celery.utils.nodenames import default_nodename, host_format

from cloche.app import declared_names
from cloche.app.events import collect_events
from cloche.app.mingle import use_quick_mingle
from cloche.app.plain import receive_plainly
from cloche.app.registration import import_tasks
from cloche.launch import collector
from cloche.launch.environment import Environment
from cloche.launch.last_words import tell_what_still_runs
from cloche.launch.pools import IMPLEMENTATIONS, queues_of, settle
from cloche.settings import Resolved, Settings
from cloche.settings.celery_keys import kibibytes
from cloche.settings.model import WorkerSettings

#: Seconds between heartbeat events; they tell readers how long to wait for the next.
HEARTBEAT = 5


def declared_workers(settings: Settings) -> Mapping[str, WorkerSettings]:
    """The configured workers; in simple mode one for everything and one for downloads.

    Downloads have their own so that a few slow ones cannot keep short tasks waiting.
    """
    if settings.workers:
        return settings.workers
    family = settings.families.get("download")
    if family is None or family.queue is None:
        return {"worker": WorkerSettings()}
    return {
        "worker": WorkerSettings(exclude_queues=(family.queue,)),
        "download": WorkerSettings(queues=(family.queue,)),
    }


def undeclared_worker(resolved: Resolved) -> WorkerSettings:
    """A worker that no setting names: what the application itself says of its workers."""
    for name, worker in resolved.settings.workers.items():
        said = {
            field: getattr(worker, field)
            for field in worker.model_fields_set
            if resolved.origin(f"workers.{name}.{field}").kind == "app"
        }
        return WorkerSettings.model_validate(said)
    return WorkerSettings()


def unheard_queues(app: Celery, settings: Settings) -> tuple[str, ...]:
    """Queues the configuration names and no declared worker consumes.

    The task modules are not imported, so a queue that only a task asks for is not seen.
    """
    workers = declared_workers(settings).values()
    named = declared_names(app)
    heard = {
        name
        for worker in workers
        for name in (worker.queues or named)
        if name not in worker.exclude_queues
    }
    return tuple(name for name in named if name not in heard)


def origin_in_words(resolved: Resolved, key: str) -> str:
    """`` (from cloche.toml:3)``, for the banner; nothing where it is the default."""
    origin = resolved.origin(key)
    return "" if origin.kind == "default" else f" (from {origin})"


def run_worker(
    environment: Environment,
    *,
    name: str,
    worker: WorkerSettings,
    loglevel: str = "INFO",
    supervised: bool = False,
) -> int:
    """Run a worker in this process until it is told to stop; its exit code.

    ``supervised``: whoever stops it has waited already, so a SIGQUIT gives running tasks
    back at once instead of after ``stop.soft`` seconds.
    """
    app = environment.app
    app.cloche_origin = partial(origin_in_words, environment.resolved)
    import_tasks(app)
    queues = queues_of(app, worker)
    worker = settle(app, worker)
    if supervised:
        app.conf.worker_soft_shutdown_timeout = 0
        tell_what_still_runs()
    # A result is worth any wait: given up, the task would run a second time.
    app.conf.result_backend_transport_options = {
        **app.conf.result_backend_transport_options,
        "retry_policy": {"max_retries": None, "interval_max": 5},
    }
    collect_events(app)
    receive_plainly(app)
    # To app.Worker None means what the configuration says.
    app.conf.worker_max_tasks_per_child = worker.max_tasks_per_child
    app.conf.worker_max_memory_per_child = kibibytes(worker.max_memory_per_child)
    if worker.sync_concurrency is not None:
        app.conf.cloche_sync_concurrency = worker.sync_concurrency
    warnings.simplefilter("ignore", SecurityWarning)  # the lifecycle says it in one line
    instance = app.Worker(
        hostname=host_format(default_nodename(f"{name}@%h")),
        queues=queues,
        pool_cls=IMPLEMENTATIONS.get(worker.pool, worker.pool),
        concurrency=worker.concurrency,
        prefetch_multiplier=worker.prefetch,
        **use_quick_mingle(app),
        # With it every worker reads every other one's heartbeats: two thirds of what idle costs.
        without_gossip=True,
        heartbeat_interval=HEARTBEAT,
        loglevel=loglevel,
        quiet=True,
    )
    collector.resume()
    instance.start()
    code: int = instance.exitcode
    return code
