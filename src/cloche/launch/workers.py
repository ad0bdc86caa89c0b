"""Workers: which ones there are, and how one of them runs."""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from celery import Celery
from celery.platforms import SecurityWarning
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename, host_format

from cloche.app import declared_names
from cloche.app.registration import import_tasks
from cloche.launch import collector
from cloche.launch.environment import Environment
from cloche.launch.pools import IMPLEMENTATIONS, foreseen, pool_note, queues_of, resolve_worker
from cloche.launch.shutdown_progress import tell_what_still_runs
from cloche.settings import Resolved, Settings
from cloche.settings.celery_keys import kibibytes
from cloche.settings.families import FAMILIES
from cloche.settings.model import WorkerSettings
from cloche.settings.of_app import state_of
from cloche.worker.events import collect_events
from cloche.worker.mingle import use_quick_mingle
from cloche.worker.receiver import receive_plainly

logger = get_logger(__name__)

#: Seconds between heartbeat events; they tell readers how long to wait for the next.
HEARTBEAT = 5

_NUMBERED = re.compile(r"(?P<name>.+)-(?P<number>[1-9]\d*)$")


def declared_workers(settings: Settings) -> Mapping[str, WorkerSettings]:
    """The configured workers; in simple mode one for everything, and one for each family that has
    its own."""
    if settings.workers:
        return {name: one.on(settings.worker) for name, one in settings.workers.items()}
    own = {
        family.name: queue
        for family in FAMILIES
        if family.own_worker
        and family.name in settings.families
        and (queue := settings.families[family.name].queue) is not None
    }
    if not own:
        return {"worker": any_worker(settings)}
    workers = {
        "worker": WorkerSettings(exclude_queues=tuple(own.values())),
        **{name: WorkerSettings(queues=(queue,)) for name, queue in own.items()},
    }
    return {name: worker.on(settings.worker) for name, worker in workers.items()}


def any_worker(settings: Settings) -> WorkerSettings:
    """A worker of which nothing is declared."""
    return WorkerSettings().on(settings.worker)


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
    state = state_of(app)
    state.origin = partial(origin_in_words, environment.resolved)
    import_tasks(app)
    queues = queues_of(app, worker)
    worker = resolve_worker(app, worker)
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
    # Where the application itself sets the limit it means what it means to Celery.
    said = environment.resolved.origin("worker.max_memory_per_child").kind == "app"
    own = environment.settings.worker.max_memory_per_child
    state.memory_growth = not (said and worker.max_memory_per_child == own)
    if worker.sync_concurrency is not None:
        app.conf.cloche_sync_concurrency = worker.sync_concurrency
    warnings.simplefilter("ignore", SecurityWarning)  # the lifecycle says it in one line
    if note := pool_note(app, environment.settings):
        logger.warning("%s", note)
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


@dataclass(frozen=True, slots=True)
class Declared:
    """A worker by name. ``worker`` is settled (pool, concurrency, processes).

    ``arguments`` make ``cloche worker`` run it: a name in the settings, or options.
    """

    name: str
    worker: WorkerSettings
    arguments: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many processes of it are wanted."""
        return 1 if self.worker.processes is None else self.worker.processes

    def scaled(self, count: int) -> Declared:
        """The same, ``count`` times; also none at all."""
        return replace(self, worker=self.worker.model_copy(update={"processes": count}))

    def labels(self) -> tuple[str, ...]:
        """The names of its processes: its own if it is one, else numbered."""
        return labels(self.name, self.count)

    def queues(self, app: Celery) -> frozenset[str]:
        """What it consumes; empty if nobody can say."""
        try:
            return frozenset(queues_of(app, self.worker))
        except Exception:  # noqa: BLE001 (a router of theirs; the worker tells it in its own log)
            return frozenset()


def labels(name: str, count: int, present: Collection[str] = ()) -> tuple[str, ...]:
    """``count`` process names of a worker, keeping those ``present`` as far as they go.

    One process is called as the worker is; several are numbered. A worker that grows keeps
    the processes it has.
    """
    kept = sorted(present, key=_number)[:count]
    if not kept and count == 1:
        return (name,)
    free = (
        label
        for number in range(1, count + len(kept) + 2)
        if (label := f"{name}-{number}") not in kept
        # A single process, called as the worker, is its number 1.
        and not (number == 1 and name in kept)
    )
    return (*kept, *(next(free) for _ in range(count - len(kept))))


def node_of(label: str) -> str:
    """The node name of a worker process of this machine."""
    return f"{label}@{socket.gethostname()}"


def declared(app: Celery, settings: Settings) -> dict[str, Declared]:
    """The workers of the settings, or of simple mode."""
    return {
        name: Declared(name, foreseen(app, worker), ("--like", name))
        for name, worker in declared_workers(settings).items()
    }


def from_options(
    app: Celery, settings: Settings, name: str, options: Mapping[str, object]
) -> Declared:
    """A worker declared on the command line, on top of a declared one of its name.

    ``options`` are fields of WorkerSettings (queues, exclude_queues, pool, concurrency,
    processes). Raises pydantic's ValidationError.
    """
    base = declared_workers(settings).get(name)
    arguments = ("--like", name) if base is not None else ()
    told = dict(options)
    if "queues" in told:
        told.setdefault("exclude_queues", ())
    given = {**(base or any_worker(settings)).model_dump(exclude_unset=True), **told}
    worker = WorkerSettings.model_validate(given)
    return Declared(name, foreseen(app, worker), (*arguments, *_as_options(options)))


def _as_options(options: Mapping[str, object]) -> tuple[str, ...]:
    """``{"queues": ["a", "b"], "concurrency": 2}`` as ``cloche worker`` takes it."""
    words: list[str] = []
    for key, value in options.items():
        if key == "processes":  # so many are started; each is one
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words += [f"--{key.replace('_', '-')}", text]
    return tuple(words)


def _number(label: str) -> tuple[int, str]:
    found = _NUMBERED.match(label)
    return (int(found["number"]) if found else 0, label)
