"""Which pool a worker uses where nobody says, and what else follows from the pool."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence

from celery import Celery, Task, signals

from cloche.aio.task import refuse_unawaited, runs_coroutines
from cloche.app import consumed_queues
from cloche.app.loading import broken_task_module
from cloche.errors import ClocheError, SettingsError
from cloche.settings.model import Settings, WorkerSettings

#: Pools of ours, by our name or by Celery's for the one they stand for.
IMPLEMENTATIONS = {
    "asyncio": "cloche.aio.pool:TaskPool",
    "threads": "cloche.worker.threads:ThreadsPool",
    "prefork": "cloche.worker.prefork:PreforkPool",
    "solo": "cloche.worker.solo:SoloPool",
}
#: Pools of Celery's that patch the standard library at the start of a process.
GREEN = ("gevent", "eventlet")
#: Processes of a prefork worker that says nothing else: one per core, at most this many.
MOST_PREFORK = 4
#: Tasks at once in a threads worker that says nothing else.
THREADS = 10
#: Tasks at once in each asyncio process that says nothing else: a waiting coroutine costs some
#: KiB, and what it waits for (a database, an API) has a pool with a limit of its own.
COROUTINES = 1000


def queues_of(app: Celery, worker: WorkerSettings) -> tuple[str, ...]:
    """The queues a worker consumes, once the application's task modules are imported.

    Raises SettingsError if none is left: to Celery an empty list means all of them.
    """
    wanted = worker.queues or consumed_queues(app)
    queues = tuple(name for name in wanted if name not in worker.exclude_queues)
    if not queues:
        raise SettingsError(
            "this worker has no queue to consume",
            why=f"of {', '.join(wanted)} it excludes all",
            fix="name its queues with -Q, or exclude fewer",
        )
    return queues


def resolve_worker(app: Celery, worker: WorkerSettings) -> WorkerSettings:
    """``worker`` with what it leaves open: pool, concurrency, processes, recycling.

    The task modules must be imported. Raises SettingsError without a queue, and
    CoroutineTaskError for an ``async def`` that its pool would not await.
    """
    tasks = tuple(tasks_of(app, queues_of(app, worker)))
    pool = (own_pool(app, worker) or pool_for(tasks)) if worker.pool == "auto" else worker.pool
    if pool != "asyncio":
        refuse_unawaited(tasks)
    update: dict[str, object] = {"pool": pool, "concurrency": worker.concurrency or at_once(pool)}
    if worker.processes is None:
        update["processes"] = cores() if pool == "asyncio" else 1
    if pool != "prefork" and "max_tasks_per_child" not in worker.model_fields_set:
        update["max_tasks_per_child"] = None  # a thousand of their tasks may be one second's
    return worker.model_copy(update=update)


def foreseen(app: Celery, worker: WorkerSettings) -> WorkerSettings:
    """:func:`resolve_worker` for a launcher, which imports the application's modules for it.

    Whatever is wrong with them is for the worker to tell, in its own log.
    """
    try:
        import_own_modules(app)
        return resolve_worker(app, worker)
    except Exception:  # noqa: BLE001 (any code of theirs)
        pool = (own_pool(app, worker) or "prefork") if worker.pool == "auto" else worker.pool
        update = {"pool": pool, "concurrency": worker.concurrency or at_once(pool)}
        return worker.model_copy(update={**update, "processes": worker.processes or 1})


def own_pool(app: Celery, worker: WorkerSettings) -> str | None:
    """The pool of the application's ``worker_pool`` where it is none of ours by name.

    A class of its own is used as it is. Green threads would have to be in place before the
    first import: threads, which overlap waiting as they do, stand in for them.
    """
    if "pool" in worker.model_fields_set or not app.conf.value_set_for("worker_pool"):
        return None
    name = app.conf.worker_pool
    if not isinstance(name, str):
        return f"{name.__module__}:{name.__qualname__}"
    return "threads" if name.partition(":")[0].rpartition(".")[2] in GREEN else name


def pool_note(app: Celery, settings: Settings) -> str:
    """A sentence where the application's ``worker_pool`` is not what it gets; or none."""
    if own_pool(app, WorkerSettings().on(settings.worker)) != "threads":
        return ""
    return (
        f"worker_pool = {app.conf.worker_pool!r}: Cloche has no such pool and takes threads; "
        "worker.pool (or -P) chooses another one"
    )


def pool_for(tasks: Sequence[Task]) -> str:
    """asyncio if every task of the project's own is a coroutine, else prefork.

    Not if only some are: the others would move from processes of their own into threads of
    one, where a crash, a leak or a long computation hits them all. Coroutines run in prefork
    too, one at a time per process.
    """
    return "asyncio" if tasks and all(map(runs_coroutines, tasks)) else "prefork"


def tasks_of(app: Celery, queues: Sequence[str]) -> Iterator[Task]:
    """The tasks of the project's own that are routed to one of ``queues``."""
    for task in app.tasks.values():
        module = type(task).__module__.partition(".")[0]
        if module not in ("celery", "cloche") and queue_of(app, task) in (None, *queues):
            yield task


def import_own_modules(app: Celery) -> None:
    """What ``import_default_modules`` imports, without Celery's and our own modules.

    Raises AppError with the traceback of one that fails.
    """
    try:
        signals.import_modules.send(sender=app)
        for name in (*app.conf.imports, *app.conf.include):
            if name.partition(".")[0] not in ("celery", "cloche"):
                importlib.import_module(name)
    except ClocheError:
        raise
    except Exception as error:
        raise broken_task_module(error) from error


def at_once(pool: str) -> int:
    """Tasks at once in a worker process that does not say."""
    if pool == "asyncio":
        return COROUTINES
    if pool == "solo":
        return 1
    return THREADS if pool == "threads" else min(cores(), MOST_PREFORK)


def cores() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def queue_of(app: Celery, task: Task) -> str | None:
    """Where it is routed; None if a router function cannot tell without a message."""
    asked = getattr(task, "queue", None)
    if isinstance(asked, str):
        return asked
    try:
        queue = app.amqp.router.route({}, task.name).get("queue")
    except Exception:  # noqa: BLE001 (a function of theirs)
        return None
    return str(getattr(queue, "name", queue)) if queue is not None else None
