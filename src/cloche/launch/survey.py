"""Everything that must work, looked at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

from cloche.app.schedules import add_schedules
from cloche.cluster import Cluster
from cloche.cluster.database import check_database
from cloche.cluster.health import one_line
from cloche.cluster.judgement import judge_beat, judge_queues, judge_workers
from cloche.cluster.schedules import schedules_seen
from cloche.errors import BrokerError
from cloche.launch.environment import Environment, join
from cloche.launch.pools import foreseen, import_own_modules, queues_of
from cloche.process.deaf import DeafWorkers
from cloche.process.pulse import Pulse, pulses
from cloche.records import Health, Snapshot
from cloche.settings import Resolved

#: Checks of what any process needs to be ready, as ``/readyz`` tells.
NEEDED = frozenset({"broker", "results", "database"})


def survey(
    resolved: Resolved, kinds: Collection[str], timeout: float, now: float
) -> tuple[Health, ...]:
    """The verdicts on all of ``kinds``, none waited for longer than ``timeout`` seconds.

    ``now`` is Unix time. Raises AppError and SettingsError.
    """
    try:
        environment = join(resolved)
    except BrokerError as error:
        return (Health("broker", False, error.what),)
    return tuple(check for check in _looked(environment, timeout, kinds, now) if _of(check, kinds))


def _of(check: Health, kinds: Collection[str]) -> bool:
    """Whether a check is asked for: ``worker mail`` is of the kind ``workers``."""
    kind = check.name.partition(" ")[0]
    return kind in kinds or f"{kind}s" in kinds


def _looked(
    environment: Environment, timeout: float, kinds: Collection[str], now: float
) -> Iterator[Health]:
    settings = environment.settings
    here = [pulse for pulse in pulses(settings.run_dir) if pulse.identity.alive()]
    cluster = Cluster(
        environment.app,
        {"database": partial(check_database, settings)},
        timeout=min(1.0, timeout),
        known=[pulse.node for pulse in here if pulse.pool != "beat"],
        patience=timeout,
    )
    if NEEDED.issuperset(kinds):
        yield from cluster.health()
        return
    snapshot = cluster.look()
    yield from snapshot.health
    if snapshot.gaps:
        yield Health("workers", False, snapshot.gaps[0])
        return
    yield from _judged(environment, cluster, snapshot, here, now)


def _judged(
    environment: Environment,
    cluster: Cluster,
    snapshot: Snapshot,
    here: list[Pulse],
    now: float,
) -> Iterator[Health]:
    import_own_modules(environment.app)
    workers = judge_workers(expected_workers(environment, here), snapshot.workers, here)
    deaf = DeafWorkers(environment.settings.run_dir).lately(now)
    for check in workers:
        one = deaf.get(check.name.removeprefix("worker "))
        note = f"; it was {one.told(now)}" if one else ""
        yield Health(check.name, check.ok, f"{check.detail}{note}")
    yield from _tried("queues", lambda: judge_queues(snapshot.queues, cluster.paused(), here))
    yield from _tried("beat", lambda: [_beat(environment, here)])


def _beat(environment: Environment, here: list[Pulse]) -> Health:
    environment.app.finalize()
    add_schedules(environment.app, environment.settings)
    seen = schedules_seen(environment.app, environment.settings)
    return judge_beat(seen, environment.settings, here)


def _tried(name: str, check: Callable[[], Collection[Health] | Iterator[Health]]) -> list[Health]:
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 (a check may fail in any way; that is the verdict)
        return [Health(name, False, one_line(error))]


def expected_workers(environment: Environment, here: list[Pulse]) -> Mapping[str, tuple[str, ...]]:
    """Name -> queues: those the settings name, else those of this run directory."""
    app, resolved = environment.app, environment.resolved
    expected: dict[str, tuple[str, ...]] = {}
    for name, worker in resolved.settings.workers.items():
        fields = worker.model_fields_set
        origins = [resolved.origin(f"workers.{name}.{field}").kind for field in fields]
        if origins and all(kind == "app" for kind in origins):
            continue  # what an application says of any worker names none
        processes = foreseen(app, worker).processes or 1
        for number in range(1, processes + 1):
            label = name if processes == 1 else f"{name}-{number}"
            expected[label] = queues_of(app, worker)
    if not expected:
        expected = {pulse.name: pulse.queues for pulse in here if pulse.pool != "beat"}
    return expected
