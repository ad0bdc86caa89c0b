"""Existing workers, for programs: find them, stop them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery

from cloche.cluster.existing import ExistingWorker, existing_workers
from cloche.cluster.processes import processes_seen
from cloche.launch.client import Launcher
from cloche.launch.environment import agree, known_broker, load_environment
from cloche.launch.existing import Say, stop_workers
from cloche.launch.pools import import_own_modules
from cloche.settings import Resolved, load
from cloche.settings.model import StopSettings


def discover_existing_workers(
    app: Celery | str | None = None, *, timeout: float = 1.0
) -> tuple[ExistingWorker, ...]:
    """The workers of an application that run on this machine, whoever started them.

    ``app`` is an application, its name as ``-A`` takes it, or None: what the settings say.
    Only what answers at its broker within ``timeout`` seconds, belongs to this user and has
    its tasks registered is returned; pool processes are not counted. Raises the broker
    connection's errors, AppError and SettingsError.
    """
    if not isinstance(app, Celery):
        found = application(_resolved(app))
        if found is None:
            return ()
        app = found
    return existing_workers(app, import_own_modules, timeout=timeout)


def stop_all_existing_workers(
    app: Celery | str | None = None,
    *,
    stop: StopSettings | None = None,
    say: Say = lambda text: None,
) -> tuple[ExistingWorker, ...]:
    """Stop those that :func:`discover_existing_workers` finds; returns them once they are gone.

    Workers that the launcher of this run directory keeps are stopped through it. Raises
    ExistingWorkerError for one that another launcher keeps, or that does not stop.
    """
    resolved = _resolved(app if isinstance(app, str) else None)
    found = discover_existing_workers(app)
    launcher = Launcher(resolved.settings.run_dir)
    ours = [one for one in found if one.launcher is not None and one.launcher == launcher.pid()]
    if ours:
        launcher.ask({"do": "stop", "names": [one.name for one in ours]})
    others = [one for one in found if one not in ours and one.identity.alive()]
    stop_workers(others, stop or resolved.settings.stop, say)
    return found


def stop_named(resolved: Resolved, names: Sequence[str], say: Say) -> list[str]:
    """Stop existing workers by node name (none: all), where no launcher runs; their names."""
    app = application(resolved)
    found = existing_workers(app, import_own_modules) if app is not None else ()
    chosen = [one for one in found if not names or one.name in names]
    stop_workers(chosen, resolved.settings.stop, say)
    return [one.name for one in chosen]


def seen(resolved: Resolved) -> dict[str, Any]:
    """What ``cloche ps`` shows where no launcher runs: existing workers."""
    nothing: dict[str, Any] = {"launcher": None, "app": resolved.settings.app, "processes": []}
    app = application(resolved)
    if app is None:
        return {**nothing, "gaps": []}
    import_own_modules(app)
    found = processes_seen(app)
    return {**nothing, "processes": [r.fields() for r in found.processes], "gaps": list(found.gaps)}


def application(resolved: Resolved) -> Celery | None:
    """The application at the broker its workers use; None if there is no broker at all.

    Raises AppError and SettingsError.
    """
    environment = load_environment(resolved)
    url = known_broker(environment.settings)
    return None if url is None else agree(environment, url).app


def _resolved(app: str | None) -> Resolved:
    return load({"app": app} if app is not None else {})
