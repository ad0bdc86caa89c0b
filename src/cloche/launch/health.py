"""What ``cloche health`` looks at: the whole system of one application, once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cloche.app.schedules import add_schedules
from cloche.cluster import Cluster
from cloche.errors import BrokerError
from cloche.health.checks import NEEDED, Scene, findings
from cloche.launch.environment import Environment, join
from cloche.launch.pools import foreseen, import_own_modules, queues_of
from cloche.launch.workers import declared_workers
from cloche.process.events import RestartedWorkers
from cloche.process.heartbeat import Heartbeat, heartbeats
from cloche.records import Health
from cloche.settings import Resolved


def look(
    resolved: Resolved, kinds: Collection[str], timeout: float, now: float
) -> tuple[Health, ...]:
    """The verdicts on all of ``kinds``, none waited for longer than ``timeout`` seconds.

    ``now`` is Unix time. Raises AppError and SettingsError.
    """
    try:
        environment = join(resolved)
    except BrokerError as error:
        return (Health("broker", False, error.what),)
    settings = environment.settings
    here = [beat for beat in heartbeats(settings.run_dir) if beat.identity.alive()]
    cluster = Cluster(
        environment.app,
        settings,
        timeout=min(1.0, timeout),
        known=[beat.node for beat in here if beat.pool != "beat"],
        patience=timeout,
    )
    if set(kinds) <= set(NEEDED):
        return tuple(one for one in cluster.health() if one.name in kinds)
    import_own_modules(environment.app)
    environment.app.finalize()
    add_schedules(environment.app, settings)
    snapshot = cluster.look()
    scene = Scene(
        settings,
        snapshot,
        expected=expected_workers(environment, here),
        here=here,
        paused=cluster.paused,
        restarts=RestartedWorkers(settings.run_dir).lately(now),
    )
    return tuple(findings(scene, kinds))


def expected_workers(
    environment: Environment, here: list[Heartbeat]
) -> Mapping[str, tuple[str, ...]]:
    """Name -> queues: those the settings name, else those of this run directory."""
    app, resolved = environment.app, environment.resolved
    expected: dict[str, tuple[str, ...]] = {}
    workers = declared_workers(resolved.settings) if resolved.settings.workers else {}
    for name, worker in workers.items():
        processes = foreseen(app, worker).processes or 1
        for number in range(1, processes + 1):
            label = name if processes == 1 else f"{name}-{number}"
            expected[label] = queues_of(app, worker)
    if not expected:
        expected = {beat.name: beat.queues for beat in here if beat.pool != "beat"}
    return expected
