"""The application and settings of one process, agreed with every other process."""

from __future__ import annotations

import os
from dataclasses import dataclass

from celery import Celery

from cloche.app import harden, load_app, restore
from cloche.broker.choice import LOCAL_PORT, look_local
from cloche.broker.embedded import EmbeddedBroker
from cloche.errors import BrokerError, BrokerFault
from cloche.settings import Resolved, Settings, reload, to_environ
from cloche.settings.celery_app import set_by_app
from cloche.settings.celery_keys import results_url, transport_url


@dataclass(frozen=True)
class Environment:
    """A hardened application and the settings it runs with."""

    app: Celery
    resolved: Resolved

    @property
    def settings(self) -> Settings:
        return self.resolved.settings


def load_environment(resolved: Resolved) -> Environment:
    """The application ``-A`` names and all settings, its own values included; not hardened yet.

    Raises AppError and SettingsError.
    """
    app = load_app(resolved.settings.app)
    restore(app)  # it may have hardened itself, with what it knew then
    return Environment(app, reload(resolved, app_conf=set_by_app(app.conf)))


def join(resolved: Resolved, *, port: int = LOCAL_PORT) -> Environment:
    """What ``cloche worker``, ``beat``, ``service`` and ``dashboard`` run with.

    The broker is the configured one, else the embedded one of a ``cloche up`` in the same
    run directory, else the local server at ``port`` that a ``cloche up`` would take. Raises
    AppError, SettingsError, and BrokerError where there is none.
    """
    environment = load_environment(resolved)
    url = environment.settings.broker.url
    found = url.get_secret_value() if url else running_embedded(environment.settings)
    return agree(environment, found or _local(environment.settings, port))


def _local(settings: Settings, port: int) -> str:
    facts, objection = None, "broker.embedded is 'always'"
    if settings.broker.embedded != "always":
        facts, objection = look_local(port=port)
    if facts is None:
        raise BrokerError(
            f"no broker is configured, no cloche up runs one in {settings.run_dir.absolute()}, "
            f"and {objection}",
            fault=BrokerFault.REFUSED,
            fix="run `cloche up`, or set REDIS_URL or broker.url",
        )
    return facts.url


def agree(environment: Environment, broker_url: str) -> Environment:
    """Take ``broker_url``, here and in every process started from here, and harden.

    Celery reads ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` before any configuration
    (celery.app.utils.Settings), so they are set too: an application that names another
    broker in its code must not part from the rest.
    """
    os.environ.update(child_environ(environment.resolved, broker_url))
    restore(environment.app)
    resolved = reload(environment.resolved, app_conf=set_by_app(environment.app.conf))
    harden(environment.app, resolved.settings)
    return Environment(environment.app, resolved)


def child_environ(resolved: Resolved, broker_url: str) -> dict[str, str]:
    """Variables that hand the command line's settings and the broker to another process."""
    environ = to_environ({**resolved.overrides(), "broker.url": broker_url})
    environ["CELERY_BROKER_URL"] = transport_url(broker_url, resolved.settings)
    if resolved.settings.results.url is not None:
        environ["CELERY_RESULT_BACKEND"] = results_url(resolved.settings) or ""
    return environ


def running_embedded(settings: Settings) -> str | None:
    """The URL of the embedded broker that runs in this run directory now, if one does."""
    return EmbeddedBroker(settings.run_dir / "broker").running_url()
