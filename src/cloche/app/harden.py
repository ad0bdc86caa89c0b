"""Production defaults for a Celery application: each put where Celery 5.7 really reads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any

from celery import Celery
from kombu import Queue
from pydantic import SecretStr

from cloche.app.lifecycle import connect_lifecycle
from cloche.app.limits import apply_to_bound, family_limits
from cloche.app.loading import app_itself, configure_quietly
from cloche.app.rabbitmq import declared_queue, leave_rabbitmq, use_rabbitmq, wants_quorum
from cloche.app.routing import all_routes, celery_routes, declared_names
from cloche.app.schedules import add_schedules
from cloche.app.task import Task, publish_quickly
from cloche.broker.embedded.broker import EmbeddedBroker
from cloche.errors import SettingsError
from cloche.settings import mask_url
from cloche.settings.celery_keys import (
    REDIS_SCHEMES,
    SEEN_BY_READERS,
    CeleryDefault,
    celery_defaults,
    plain_url,
    scheme_of,
    transport_url,
)
from cloche.settings.families import FAMILY_MODULES
from cloche.settings.model import Settings
from cloche.settings.of_app import Hardened, LeftAlone, is_own, load_for, state_of

_CELERYS_DJANGO_TASK = "celery.contrib.django.task:DjangoTask"
#: The queue of unrouted tasks in applications made by :func:`create_app`.
DEFAULT_QUEUE = "default"


def create_app(name: str = "cloche", settings: Settings | None = None, **options: Any) -> Celery:
    """A Celery application with production defaults and the task families of Cloche.

    ``settings`` None: those of the working directory, and the embedded broker that
    ``cloche up`` runs there if no other is configured. ``options`` go to
    :class:`celery.Celery`. Raises SettingsError where the environment contradicts the settings.
    """
    app = Celery(name, **options)
    if not options.get("task_cls"):
        # In a Django project Celery has put its own base class there (celery.fixups.django). That
        # one is imported when the first task is made: Django may not be set up before.
        in_django = app.task_cls == _CELERYS_DJANGO_TASK
        app.task_cls = "cloche.app.task_django:DjangoTask" if in_django else Task
    state_of(app).own = True
    harden(app, settings)
    return app


def harden(
    app: Celery,
    settings: Settings | None = None,
    *,
    addresses: Mapping[str, str] = MappingProxyType({}),
) -> Hardened:
    """Fill in what ``app`` has not set itself; change nothing that it has, except that its own
    Redis URLs are used through Cloche's transport (the same server, queues and messages), unless
    ``broker.transport`` is "stock".

    Call it after the application is configured and before it runs. Calling it again
    with other settings replaces what the first call set. ``addresses`` (``broker_url``,
    ``result_backend``) are used whatever the application says. Raises SettingsError where a
    variable that Celery reads first contradicts the settings.
    """
    app = app_itself(app)
    before = restore(app)
    settings = settings or found_settings(app)
    applied, left = [], []
    quorum = wants_quorum(app, settings)
    broker = addresses.get("broker_url") or _own_broker(app)
    defaults = celery_defaults(settings, broker, quorum=quorum)
    for default in (*defaults, *_own_queue(app, settings)):
        if default.key == "result_extended" and not _takes_arguments(app):
            continue
        if default.key in SEEN_BY_READERS and not (is_own(app) or default.chosen(settings)):
            continue
        # Celery treats a key given with another spelling or name space as the same key.
        if not _says(app, default.key):
            theirs = default.key in ADDRESSES and not is_own(app)
            app.conf[default.key] = plain_url(default.value) if theirs else default.value
        elif isinstance(default.value, dict):
            app.conf[default.key] = {**default.value, **app.conf[default.key]}
        else:
            left.append(LeftAlone(default.key, app.conf[default.key], default.value))
            continue
        applied.append(default)
    _refuse_contradiction(default for default in applied if default.key not in addresses)
    notes = _use_addresses(app, settings, addresses)
    _add_routes(app, settings)
    _add_families(app, settings)
    add_schedules(app, settings)
    notes += _add_limits(app, settings)
    notes += use_rabbitmq(app, settings)
    written = _written(app, before)
    state = state_of(app)
    state.settings = settings
    state.hardened = Hardened(tuple(applied), tuple(left), tuple(notes), before, written)
    connect_lifecycle(app)
    publish_quickly(app)
    return state.hardened


#: The keys that name servers.
ADDRESSES = ("broker_url", "result_backend")


def _takes_arguments(app: Celery) -> bool:
    """Whether its result backend can store the arguments of any task: Cloche's takes those that
    came by another serializer than results have, with others the task would not run.
    """
    results = app.conf["result_backend"]
    ours = isinstance(results, str) and scheme_of(results) in REDIS_SCHEMES
    accepted = set(app.conf.accept_content or ())
    return ours or accepted <= {"json", app.conf.result_serializer}


def _says(app: Celery, key: str) -> bool:
    """Whether the application has set it. Schedules added one by one are put into the default."""
    return app.conf.value_set_for(key) or (key == "beat_schedule" and bool(app.conf[key]))


def _use_addresses(app: Celery, settings: Settings, wanted: Mapping[str, str]) -> list[str]:
    """Put broker and results through the transport of the settings, where Celery reads them:
    its own or the ``wanted`` ones. Sentences about what could not be.

    Celery reads some variables before its configuration (celery.app.utils.Settings). They are
    the project's, and stay as they are: what counts for a connection is set beside them. So do
    ``broker_url`` and ``result_backend`` in an application that is not ours, because schedulers,
    locks and the project's code connect to them with clients of their own.
    """
    conf, notes, own = app.conf, [], is_own(app)
    broker, results = wanted.get("broker_url"), wanted.get("result_backend")
    if broker and not own:
        conf["broker_url"] = plain_url(broker)
    elif own and (broker or isinstance(conf["broker_url"], str | list | tuple)):
        conf["broker_url"] = _through(broker or conf["broker_url"], settings)
    for key in ("broker_read_url", "broker_write_url"):
        url = _through(broker or getattr(conf, key), settings)
        if url != getattr(conf, key):
            conf[key] = url
        if url != getattr(conf, key):
            notes.append(
                f"Celery itself reads CELERY_{key.upper()}: {mask_url(getattr(conf, key))} is used "
                "as it stands there, by kombu's own transport"
            )
    found = conf.result_backend
    if isinstance(found, str) and scheme_of(found) in app.loader.override_backends:
        return notes  # the application's loader replaces it
    url = _through(results or found, settings)
    if results and not own:
        conf["result_backend"] = plain_url(results)
    elif own and url != conf.result_backend:
        conf["result_backend"] = url
    if url != conf.result_backend and app.backend_cls is None:
        app.backend_cls, state_of(app).chose_backend = url, True
    return notes


def _through(url: Any, settings: Settings) -> Any:
    """An address (or a list of them, tried in turn) for the transport of the settings."""
    if isinstance(url, list | tuple):
        return [_through(str(one), settings) for one in url]
    return transport_url(url, settings) if isinstance(url, str) else url


def found_settings(app: Celery) -> Settings:
    """The settings of the working directory for ``app``; the broker of a ``cloche up`` there,
    if no other is named."""
    settings = load_for(app).settings
    if settings.broker.url is not None:
        return settings
    running = EmbeddedBroker(settings.run_dir / "broker").running_url()
    if running is None:
        return settings
    broker = settings.broker.model_copy(update={"url": SecretStr(running)})
    return settings.model_copy(update={"broker": broker})


def _own_broker(app: Celery) -> str | None:
    """The broker the application names itself, as Celery reads it."""
    keys = ("broker_url", "broker_read_url")
    if not any(map(app.conf.value_set_for, keys)) and "CELERY_BROKER_URL" not in os.environ:
        return None
    first: str | None = next(iter(_as_list(app.conf.broker_read_url)), None)
    return first


def _own_queue(app: Celery, settings: Settings) -> tuple[CeleryDefault, ...]:
    """The default queue of an application we made; an existing one keeps its own."""
    if not is_own(app) or settings.tasks.default_queue is not None:
        return ()
    return (CeleryDefault("task_default_queue", DEFAULT_QUEUE, "a plain word"),)


def restore(app: Celery) -> dict[str, Any]:
    """Undo an earlier :func:`harden`, if any, so that only the application's own values stay.

    What the application has changed since is its own. Returns all that it has set
    (``app.conf.changes``).
    """
    configure_quietly(app)
    leave_rabbitmq(app)
    state = state_of(app)
    if state.chose_backend:
        app.backend_cls, state.chose_backend = None, False
    earlier = state.hardened
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


def _refuse_contradiction(applied: Iterable[CeleryDefault]) -> None:
    """Celery 5.7 reads these two variables before any configuration (celery.app.utils).

    Raises SettingsError where one names another place than the settings do.
    """
    variables = {"broker_url": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}
    for default in applied:
        variable = variables.get(default.key, "")
        value = os.environ.get(variable, "") if variable else ""
        if value and plain_url(value) != plain_url(default.value):
            raise SettingsError(
                f"{variable} says {mask_url(value)}, "
                f"but {default.setting} is {mask_url(default.value)}",
                why=f"Celery reads {variable} before everything else, so it would win unseen",
                fix=f"unset {variable}, or give both the same value",
            )


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
    limits = family_limits(settings, app.conf.task_annotations, guest=not is_own(app))
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
