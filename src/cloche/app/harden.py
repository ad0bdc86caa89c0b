"""Production defaults for a Celery application: each put where Celery 5.7 really reads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from kombu import Queue
from pydantic import SecretStr

from cloche.app.lifecycle import connect_lifecycle
from cloche.app.limits import apply_to_bound, family_limits
from cloche.app.rabbitmq import declared_queue, leave_rabbitmq, use_rabbitmq
from cloche.app.routing import all_routes, celery_routes, declared_names
from cloche.app.schedules import add_schedules
from cloche.app.task import Task, publish_quickly
from cloche.broker.embedded import EmbeddedBroker
from cloche.errors import SettingsError
from cloche.settings import load, mask_url
from cloche.settings.celery_keys import (
    CeleryDefault,
    celery_defaults,
    plain_url,
    transport_url,
)
from cloche.settings.model import Settings

#: Task modules of the families Cloche ships; imported by the worker, never from here.
FAMILY_MODULES: Mapping[str, str] = {
    "download": "cloche.tasks.download",
    "logs": "cloche.tasks.logs",
    "maintenance": "cloche.tasks.maintenance",
}
#: The queue of unrouted tasks in applications made by :func:`create_app`.
DEFAULT_QUEUE = "default"


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A default that was not applied: the application has its own value."""

    key: str
    value: Any
    default: Any


@dataclass(frozen=True, slots=True)
class Hardened:
    """What :func:`harden` did: defaults applied, values left alone, and sentences to tell.

    ``before`` and ``written`` are the configuration's changes before it and by it.
    """

    applied: tuple[CeleryDefault, ...]
    left_alone: tuple[LeftAlone, ...]
    notes: tuple[str, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict, repr=False)
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)


def create_app(name: str = "cloche", settings: Settings | None = None, **options: Any) -> Celery:
    """A Celery application with production defaults and the task families of Cloche.

    ``settings`` None: those of the working directory, and the embedded broker that
    ``cloche up`` runs there if no other is configured. ``options`` go to
    :class:`celery.Celery`. Raises SettingsError where the environment contradicts the settings.
    """
    settings = settings or found_settings()
    app = Celery(name, **{"task_cls": Task, **options})
    app.cloche_queue = DEFAULT_QUEUE
    harden(app, settings)
    return app


def harden(app: Celery, settings: Settings | None = None) -> Hardened:
    """Fill in what ``app`` has not set itself; change nothing that it has, except that its own
    Redis URLs are used through Cloche's transport (the same server, queues and messages), unless
    ``broker.transport`` is "stock".

    Call it after the application is configured and before it runs. Calling it again
    with other settings replaces what the first call set.
    """
    settings = settings or found_settings()
    before = restore(app)
    applied, left = [], []
    for default in (*celery_defaults(settings, _own_broker(app)), *_own_queue(app, settings)):
        # Celery treats a key given with another spelling or name space as the same key.
        if not app.conf.value_set_for(default.key):
            app.conf[default.key] = default.value
        elif isinstance(default.value, dict):
            app.conf[default.key] = {**default.value, **app.conf[default.key]}
        else:
            left.append(LeftAlone(default.key, app.conf[default.key], default.value))
            continue
        applied.append(default)
    _use_transport(app, settings)
    notes = _refuse_contradiction(applied)
    _add_routes(app, settings)
    _add_families(app, settings)
    add_schedules(app, settings)
    notes += _add_limits(app, settings)
    notes += use_rabbitmq(app, settings)
    written = _written(app, before)
    done = Hardened(tuple(applied), tuple(left), tuple(notes), before, written)
    app.cloche_settings, app.cloche_hardened = settings, done
    connect_lifecycle(app)
    publish_quickly(app)
    return done


def _use_transport(app: Celery, settings: Settings) -> None:
    """Put the application's own broker and result URLs through the transport of the settings."""
    for key in ("broker_url", "result_backend"):
        url = app.conf[key]
        if isinstance(url, str) and (ours := transport_url(url, settings)) != url:
            app.conf[key] = ours


def found_settings() -> Settings:
    """The settings of the working directory; the broker of a ``cloche up`` there, if any."""
    settings = load().settings
    if settings.broker.url is not None:
        return settings
    running = EmbeddedBroker(settings.run_dir / "broker").running_url()
    if running is None:
        return settings
    broker = settings.broker.model_copy(update={"url": SecretStr(running)})
    return settings.model_copy(update={"broker": broker})


def _own_broker(app: Celery) -> str | None:
    """The broker the application names itself."""
    if not app.conf.value_set_for("broker_url"):
        return None
    first: str | None = next(iter(_as_list(app.conf["broker_url"])), None)
    return first


def _own_queue(app: Celery, settings: Settings) -> tuple[CeleryDefault, ...]:
    """The default queue of an application we made; an existing one keeps its own."""
    name = getattr(app, "cloche_queue", None)
    if name is None or settings.tasks.default_queue is not None:
        return ()
    return (CeleryDefault("task_default_queue", name, "a plain word"),)


def restore(app: Celery) -> dict[str, Any]:
    """Undo an earlier :func:`harden`, if any, so that only the application's own values stay.

    What the application has changed since is its own. Returns all that it has set
    (``app.conf.changes``).
    """
    app.conf.finalize()
    leave_rabbitmq(app)
    earlier: Hardened = getattr(app, "cloche_hardened", None) or Hardened((), ())
    changes = app.conf.changes
    for key, written in earlier.written.items():
        if key not in changes or changes[key] != written:
            continue
        del changes[key]
        if key in earlier.before:
            changes[key] = earlier.before[key]
    return dict(changes)


def _written(app: Celery, before: Mapping[str, Any]) -> dict[str, Any]:
    """What hardening put into the configuration, so that later changes can be told from it."""
    return {
        key: copy(value)
        for key, value in app.conf.changes.items()
        if key not in before or before[key] is not value
    }


def _refuse_contradiction(applied: Iterable[CeleryDefault]) -> list[str]:
    """Celery 5.7 reads these two variables before any configuration (celery.app.utils).

    Raises SettingsError where one names another place than the settings do. Sentences where
    it names the same place for kombu's own transport.
    """
    variables = {"broker_url": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}
    notes = []
    for default in applied:
        variable = variables.get(default.key, "")
        value = os.environ.get(variable, "") if variable else ""
        if not value or value == default.value:
            continue
        if plain_url(value) != plain_url(default.value):
            raise SettingsError(
                f"{variable} says {mask_url(value)}, "
                f"but {default.setting} is {mask_url(default.value)}",
                why=f"Celery reads {variable} before everything else, so it would win unseen",
                fix=f"unset {variable}, or give both the same value",
            )
        notes.append(
            f"Celery itself reads {variable}, so kombu's own transport is used here: write "
            f"{default.value.partition('://')[0]}:// in it "
            "(or use REDIS_URL) for the one that loses no task"
        )
    return notes


def _add_routes(app: Celery, settings: Settings) -> None:
    """Routes after the application's own (Celery takes the first match); queues declared."""
    routes = all_routes(settings)
    table = celery_routes(routes)
    own = app.conf.task_routes
    app.conf.task_routes = [*_as_list(own), table]
    missing = [name for name in declared_names(app) if name not in _declared(app)]
    queues = app.conf.task_queues
    if isinstance(queues, Mapping):
        declared = {name: declared_queue(app, settings, name) for name in missing}
        app.conf.task_queues = {**queues, **declared}
    else:
        # A Queue without exchange and key of its own would share the default queue's
        # and receive a copy of its messages (celery.app.amqp.Queues.add).
        new = [declared_queue(app, settings, name) for name in missing]
        app.conf.task_queues = [*(queues or ()), *new]


def _as_list(value: Any) -> list[Any]:
    """Celery takes one router (or annotation), or a list of them, or None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _declared(app: Celery) -> set[str]:
    queues = app.conf.task_queues or ()
    return {queue.name if isinstance(queue, Queue) else str(queue) for queue in queues}


def _add_families(app: Celery, settings: Settings) -> None:
    modules = [FAMILY_MODULES[name] for name in settings.families if name in FAMILY_MODULES]
    present = tuple(app.conf.include or ())
    app.conf.include = (*present, *(module for module in modules if module not in present))


def _add_limits(app: Celery, settings: Settings) -> list[str]:
    limits = family_limits(settings, app.conf.task_annotations)
    app.conf.task_annotations = [limits]
    app.__dict__.pop("annotations", None)  # a cached property of Celery.annotations
    bound = apply_to_bound(app, limits)
    if not bound:
        return []
    return [
        f"{len(bound)} tasks were bound before harden() ran ({', '.join(bound[:3])}"
        f"{', …' if len(bound) > 3 else ''}): task_acks_late and the like do not reach them; "
        "call harden() right after the application is configured"
    ]
