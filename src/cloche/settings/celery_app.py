"""What a Celery application set itself, as candidates for our settings.

Names are those of Celery 5.7 (``celery/app/defaults.py``), in lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cloche.settings.keys import Path_
from cloche.settings.origin import Origin
from cloche.settings.reading import Reading


def _same(value: object) -> object:
    return value


def _alternatives(value: object) -> object:
    """Celery takes a list of broker URLs, kombu joins them with ";"."""
    return ";".join(map(str, value)) if isinstance(value, list | tuple) else value


def _kibibytes(value: object) -> object:
    """``worker_max_memory_per_child`` is in KiB."""
    return value * 1024 if isinstance(value, int) else value


def _pool(value: object) -> object:
    """``worker_pool`` may be an alias or the path of a class."""
    return {"processes": "prefork", "cloche.aio.pool:TaskPool": "asyncio"}.get(str(value), value)


def _path(value: object) -> object:
    """``beat_scheduler`` may be a class, or its path."""
    return f"{value.__module__}:{value.__qualname__}" if isinstance(value, type) else value


@dataclass(frozen=True, slots=True)
class Mapped:
    """A Celery key and ours. ``zero_is_unset`` where Celery's 0 means "its default"."""

    celery: str
    path: Path_
    convert: Callable[[object], object] = _same
    zero_is_unset: bool = False


MAPPED = (
    Mapped("broker_url", ("broker", "url"), _alternatives),
    Mapped("broker_pool_limit", ("broker", "pool_limit"), zero_is_unset=True),
    Mapped("result_backend", ("results", "url")),
    Mapped("result_expires", ("results", "expires"), zero_is_unset=True),
    Mapped("result_extended", ("results", "extended")),
    Mapped("redis_socket_timeout", ("results", "socket_timeout")),
    Mapped("redis_socket_connect_timeout", ("results", "connect_timeout")),
    Mapped("task_default_queue", ("tasks", "default_queue")),
    Mapped("task_acks_late", ("tasks", "acks_late")),
    Mapped("task_soft_time_limit", ("tasks", "soft_time_limit"), zero_is_unset=True),
    Mapped("task_time_limit", ("tasks", "time_limit"), zero_is_unset=True),
    Mapped("timezone", ("timezone",), str),
    Mapped("worker_soft_shutdown_timeout", ("stop", "soft"), zero_is_unset=True),
    Mapped("beat_scheduler", ("beat", "scheduler"), _path),
    Mapped("beat_max_loop_interval", ("beat", "max_interval"), zero_is_unset=True),
)
TRANSPORT_OPTIONS = (
    Mapped("socket_timeout", ("broker", "socket_timeout")),
    Mapped("socket_connect_timeout", ("broker", "connect_timeout")),
    Mapped("socket_keepalive", ("broker", "socket_keepalive")),
    Mapped("health_check_interval", ("broker", "health_check_interval")),
    Mapped("visibility_timeout", ("broker", "visibility_timeout")),
    Mapped("lease", ("broker", "lease")),
    Mapped("max_deliveries", ("broker", "max_deliveries")),
    Mapped("publish_on_outage", ("broker", "publish_on_outage")),
)
#: These say what every worker is; they do not say which there are.
WORKER = (
    Mapped("worker_concurrency", ("worker", "concurrency"), zero_is_unset=True),
    Mapped("worker_pool", ("worker", "pool"), _pool),
    Mapped("cloche_sync_concurrency", ("worker", "sync_concurrency"), zero_is_unset=True),
    Mapped("worker_prefetch_multiplier", ("worker", "prefetch")),
    Mapped("worker_max_tasks_per_child", ("worker", "max_tasks_per_child"), zero_is_unset=True),
    Mapped(
        "worker_max_memory_per_child",
        ("worker", "max_memory_per_child"),
        _kibibytes,
        zero_is_unset=True,
    ),
)
#: Variables that Celery itself reads before its configuration (celery.app.utils.Settings), and
#: keys that count before others: of each address the strongest first.
READ_BY_CELERY: dict[str, tuple[str, ...]] = {
    "broker_url": ("CELERY_BROKER_READ_URL", "broker_read_url", "CELERY_BROKER_URL"),
    "result_backend": ("CELERY_RESULT_BACKEND",),
}


class Configuration(Protocol):
    """What we need of ``app.conf``: ``celery.app.utils.Settings`` has both.

    It knows old spellings and name spaces, and tells defaults from what was set.
    """

    def value_set_for(self, key: str) -> bool: ...

    def __getitem__(self, key: str) -> Any: ...


def set_by_app(conf: Configuration) -> dict[str, object]:
    """The keys an application set that we have settings for: what ``load(app_conf=…)`` takes.

    ``app.conf.changes`` would not do: it lacks what came from ``config_from_object``.
    Ask before ``harden(app)``, which sets keys as well.
    """
    keys = [*(mapped.celery for mapped in (*MAPPED, *WORKER)), "broker_transport_options"]
    found = {key: conf[key] for key in keys if conf.value_set_for(key)}
    if conf.value_set_for("broker_read_url"):
        found["broker_read_url"] = conf["broker_read_url"]
    return found


def read_app(
    reading: Reading, conf: Mapping[str, object], environ: Mapping[str, str] | None = None
) -> None:
    """``conf`` holds only the keys the application set; keys we have no setting for are its own.

    An address is what Celery makes of it: a variable that Celery reads before an application
    that names one is that application's word too.
    """
    for key, before in READ_BY_CELERY.items():
        path = next(mapped.path for mapped in MAPPED if mapped.celery == key)
        for name in before if conf.get(key) or conf.get("broker_read_url") else ():
            value = (environ or {}).get(name) if name.isupper() else conf.get(name)
            if value:
                place = f"{name}, as Celery reads it" if name.isupper() else f"app.conf.{name}"
                reading.offer(path, _alternatives(value), Origin("app", place))
    _read(reading, conf, (*MAPPED, *WORKER), "app.conf.")
    options = conf.get("broker_transport_options")
    if isinstance(options, Mapping):
        _read(reading, options, TRANSPORT_OPTIONS, "app.conf.broker_transport_options.")


def _read(
    reading: Reading, conf: Mapping[str, object], mapped: tuple[Mapped, ...], prefix: str
) -> None:
    for entry in mapped:
        value = conf.get(entry.celery)
        if value is None or (entry.zero_is_unset and not value):
            continue
        origin = Origin("app", prefix + entry.celery)
        reading.offer(entry.path, entry.convert(value), origin)
