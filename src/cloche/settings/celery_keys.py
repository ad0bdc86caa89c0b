"""What our settings become in Celery 5.7 and kombu 5.7: one list, each entry says why.

Each key stands where those libraries really read it; ``tests/integration/app`` proves it on
live workers and connections. No Celery is imported here: this is plain data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from cloche.settings.model import Settings

#: Schemes of Redis transports: kombu's (kombu.transport.TRANSPORT_ALIASES) and ours.
REDIS_SCHEMES = frozenset({"redis", "rediss", "redis+socket", "sentinel", "socket", "unix"})
#: Schemes by which kombu reaches RabbitMQ.
AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp"})
_OURS = "cloche+"
_NEXT_URL = re.compile(r";(?=[A-Za-z][\w+.-]*://)")


#: Keys that are left to a project's own application, unless somebody asks: who reads its results
#: takes each state but PENDING for the end, comes hours later, and has not agreed that arguments
#: are stored.
SEEN_BY_READERS = frozenset({"task_track_started", "result_expires", "result_extended"})


@dataclass(frozen=True, slots=True)
class CeleryDefault:
    """A value for one Celery key.

    A dict value is merged key by key into what the application has set itself.
    ``setting`` is the dotted key of ours it comes from, or None for a fixed choice.
    """

    key: str
    value: Any
    why: str
    setting: str | None = None

    def chosen(self, settings: Settings) -> bool:
        """Whether somebody set it, or it is the default of the model."""
        table, _, name = (self.setting or "").rpartition(".")
        return bool(table) and name in getattr(settings, table).model_fields_set


def scheme_of(url: str | None) -> str:
    """The transport name of a broker URL, without Cloche's own prefix."""
    return (url or "").partition("://")[0].lower().removeprefix(_OURS)


def transport_url(url: str, settings: Settings) -> str:
    """``url`` (or each URL of a failover list) for the transport the settings ask for.

    ``redis://h`` becomes ``cloche+redis://h``; other brokers stay as they are.
    """
    if settings.broker.transport == "stock":
        return url
    return ";".join(_ours(one) for one in _NEXT_URL.split(url))


def plain_url(url: str) -> str:
    """The same address for clients that know nothing of Cloche's transport."""
    return ";".join(_theirs(one) for one in _NEXT_URL.split(url))


def _ours(url: str) -> str:
    if url.startswith(_OURS) or scheme_of(url) not in REDIS_SCHEMES:
        return url
    return _OURS + url.removeprefix("redis+")


def _theirs(url: str) -> str:
    plain = url.removeprefix(_OURS)
    if plain.startswith("unix://"):  # redis-py's spelling
        return plain.replace("unix", "redis+socket", 1).replace("db=", "virtual_host=")
    return f"redis+{plain}" if plain.startswith("socket://") else plain


def celery_defaults(
    settings: Settings, own_broker: str | None = None, *, quorum: bool = True
) -> tuple[CeleryDefault, ...]:
    """Everything ``harden()`` sets unless the application has set it itself.

    ``own_broker`` is the application's own URL, which counts instead of that of the settings.
    ``quorum``: whether queues on RabbitMQ become quorum queues with dead letters and delay.
    """
    scheme = scheme_of(own_broker or _plain(settings.broker.url) or "redis://")
    return (
        *_addresses(settings),
        *_broker(settings, scheme),
        *(_quorum_queues() if quorum and scheme in AMQP_SCHEMES else ()),
        *_results(settings),
        *_tasks(settings),
        *_workers(settings),
        *_beat(settings),
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _addresses(settings: Settings) -> Iterator[CeleryDefault]:
    broker = _plain(settings.broker.url)
    if broker:
        url = transport_url(broker, settings)
        yield CeleryDefault("broker_url", url, "where tasks travel", "broker.url")
    results = results_url(settings)
    if results:
        yield CeleryDefault("result_backend", results, "where results are kept", "results.url")


def results_url(settings: Settings) -> str | None:
    """Where results are kept: as set, else on the broker if that is Redis, else nowhere."""
    results = _plain(settings.results.url)
    broker = _plain(settings.broker.url)
    if results is None and scheme_of(broker) in REDIS_SCHEMES:
        results = broker
    return transport_url(results, settings) if results else None


def _broker(settings: Settings, scheme: str) -> Iterator[CeleryDefault]:
    broker = settings.broker
    if scheme in REDIS_SCHEMES:
        yield CeleryDefault(
            "broker_transport_options",
            dict(_redis_options(settings)),
            "without time-outs a dead connection hangs a publish for ever (kombu Channel."
            "from_transport_options)",
            "broker.socket_timeout",
        )
    else:
        yield CeleryDefault(
            "broker_connection_timeout",
            broker.connect_timeout,
            "read by AMQP only; on Redis the transport option counts",
            "broker.connect_timeout",
        )
    if scheme in AMQP_SCHEMES:
        yield CeleryDefault(
            "broker_transport_options",
            {
                "confirm_publish": True,
                "read_timeout": broker.socket_timeout,
                "write_timeout": broker.socket_timeout,
            },
            "a publish returns when the message is safe, and a silent server fails it",
            "broker.socket_timeout",
        )
    yield CeleryDefault(
        "broker_pool_limit", broker.pool_limit, "publishers share connections", "broker.pool_limit"
    )
    yield CeleryDefault(
        "broker_connection_retry_on_startup", True, "a worker started before its broker waits"
    )
    yield CeleryDefault(
        "broker_connection_max_retries",
        None,
        "None is for ever; the default of 100 ends the worker after some 46 minutes of outage",
    )
    yield CeleryDefault(
        "broker_channel_error_retry", True, "a READONLY reply during a failover ends it otherwise"
    )
    yield CeleryDefault(
        "task_publish_retry_policy",
        _publish_policy(broker.publish_timeout),
        "the default gives up after 0.7 s",
        "broker.publish_timeout",
    )


def _quorum_queues() -> Iterator[CeleryDefault]:
    """On AMQP only, with ``broker.quorum_queues``; see ``cloche.broker.rabbitmq.queue``."""
    yield CeleryDefault("task_default_queue_type", "quorum", "replicated, with a delivery limit")
    yield CeleryDefault("task_create_missing_queue_type", "quorum", "queues named by -Q as well")
    yield CeleryDefault("worker_detect_quorum_queues", True, "they refuse a global prefetch limit")
    yield CeleryDefault(
        "broker_native_delayed_delivery_queue_type",
        "quorum",
        "a countdown waits in RabbitMQ, not in a worker's memory, where it would take a place",
    )
    yield CeleryDefault(
        "worker_consumer",
        "cloche.app.rabbitmq:Consumer",
        "what cannot be read becomes a dead letter; Celery's own acknowledges it",
    )


def _redis_options(settings: Settings) -> Iterator[tuple[str, Any]]:
    broker = settings.broker
    yield "socket_timeout", broker.socket_timeout
    yield "socket_connect_timeout", broker.connect_timeout
    yield "socket_keepalive", broker.socket_keepalive
    yield "health_check_interval", broker.health_check_interval
    if broker.transport == "cloche":
        yield "lease", broker.lease
        yield "max_deliveries", broker.max_deliveries
        yield "publish_on_outage", broker.publish_on_outage
        yield "spool_directory", str(settings.run_dir / "spool")
        return
    yield "visibility_timeout", broker.visibility_timeout
    # A killed worker's messages are looked for every 10 s instead of every 100 s.
    yield "unacked_restore_interval", 10
    yield "unacked_restore_throttle", 1


def _publish_policy(timeout: float) -> dict[str, float]:
    """Retries 0, 0.2, 0.4 … 1, 1 … s apart until ``timeout`` is used up."""
    step, longest, waited, retries = 0.2, 1.0, 0.0, 0
    while waited < timeout:
        waited += min(step * retries, longest)
        retries += 1
    return {
        "max_retries": retries,
        "interval_start": 0,
        "interval_step": step,
        "interval_max": longest,
    }


def _results(settings: Settings) -> Iterator[CeleryDefault]:
    results, keepalive = settings.results, settings.broker.socket_keepalive
    yield CeleryDefault("result_expires", results.expires, "results end", "results.expires")
    yield CeleryDefault(
        "result_extended", results.extended, "a result tells its task", "results.extended"
    )
    yield CeleryDefault(
        "result_backend_transport_options",
        {
            "retry_policy": {"timeout": settings.broker.publish_timeout},
            "subscribe_on_call": False,
        },
        "a publisher listens for the result first, and would try that for minutes; on Cloche's "
        "backend only who waits for a result listens for it",
        "broker.publish_timeout",
    )
    yield CeleryDefault(
        "redis_socket_timeout",
        results.socket_timeout,
        "the default of 120 s holds a worker that long; broker options do not apply here",
        "results.socket_timeout",
    )
    yield CeleryDefault(
        "redis_socket_connect_timeout",
        results.connect_timeout,
        "no limit by default",
        "results.connect_timeout",
    )
    yield CeleryDefault(
        "redis_socket_keepalive", keepalive, "notice a dead peer", "broker.socket_keepalive"
    )
    yield CeleryDefault(
        "redis_backend_health_check_interval",
        settings.broker.health_check_interval,
        "a half-open connection is noticed before it is used",
        "broker.health_check_interval",
    )


def _tasks(settings: Settings) -> Iterator[CeleryDefault]:
    tasks = settings.tasks
    if tasks.default_queue is not None:
        yield CeleryDefault(
            "task_default_queue", tasks.default_queue, "as set", "tasks.default_queue"
        )
    yield CeleryDefault("task_serializer", "json", "pickle lets a message run code")
    yield CeleryDefault("result_serializer", "json", "pickle lets a result run code")
    yield CeleryDefault("accept_content", ["json"], "pickle lets a message run code")
    yield CeleryDefault(
        "task_acks_late", tasks.acks_late, "a killed worker's task comes back", "tasks.acks_late"
    )
    yield CeleryDefault(
        "task_reject_on_worker_lost", False, "reject alone puts a deadly task back without end"
    )
    yield CeleryDefault(
        "task_retry_on_worker_lost", True, "a task that kills its process ends at max_retries"
    )
    yield CeleryDefault("task_track_started", True, "STARTED is told from PENDING")
    yield CeleryDefault("task_send_sent_event", True, "the wait in the queue can be measured")
    if tasks.soft_time_limit is not None:
        yield CeleryDefault(
            "task_soft_time_limit", tasks.soft_time_limit, "as set", "tasks.soft_time_limit"
        )
    if tasks.time_limit is not None:
        yield CeleryDefault("task_time_limit", tasks.time_limit, "as set", "tasks.time_limit")


def _workers(settings: Settings) -> Iterator[CeleryDefault]:
    worker = settings.worker
    yield CeleryDefault("worker_send_task_events", True, "monitors see tasks")
    yield CeleryDefault(
        "worker_prefetch_multiplier", worker.prefetch, "long tasks do not hoard others"
    )
    yield CeleryDefault(
        "worker_max_tasks_per_child", worker.max_tasks_per_child, "leaks end with the process"
    )
    if "max_memory_per_child" in worker.model_fields_set:
        # Celery's own pool compares all that a process uses, be it its model or a leak, with it
        # (billiard.pool.Worker.workloop): only a limit that somebody chose may end it there.
        yield CeleryDefault(
            "worker_max_memory_per_child",
            kibibytes(worker.max_memory_per_child),
            "Celery counts KiB here",
            "worker.max_memory_per_child",
        )
    yield CeleryDefault(
        "worker_soft_shutdown_timeout",
        settings.stop.soft,
        "running tasks may finish when the worker is told to hurry",
        "stop.soft",
    )
    yield CeleryDefault(
        "worker_eta_task_limit", 1000, "ETA tasks wait in worker memory on the stock transport"
    )


def kibibytes(size: int | None) -> int | None:
    """Bytes as the KiB that ``worker_max_memory_per_child`` counts, at least 1."""
    return None if size is None else max(1, size // 1024)


def _beat(settings: Settings) -> Iterator[CeleryDefault]:
    if "timezone" in settings.model_fields_set:
        # Else Celery's own: UTC, or the machine's with enable_utc = False.
        yield CeleryDefault("timezone", settings.timezone, "schedules mean this zone", "timezone")
    if {"logs", "maintenance"} <= settings.families.keys():
        yield CeleryDefault(
            "beat_schedule",
            {
                "cloche-expire-logs": {
                    "task": "cloche.maintenance.expire_logs",
                    "schedule": 3600.0,
                    "options": {"expires": 3600, "ignore_result": True},
                }
            },
            "execution logs older than logs.keep leave; the application's own entries stay",
        )
    yield CeleryDefault(
        "beat_max_loop_interval",
        settings.beat.max_interval,
        "300 s by default; a schedule changed meanwhile is seen late",
        "beat.max_interval",
    )
    yield CeleryDefault(
        "beat_schedule_filename",
        str(settings.run_dir / "beat-schedule"),
        "not in the working directory",
        "run_dir",
    )
