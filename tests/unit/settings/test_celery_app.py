"""What an existing Celery application set itself stands, unless somebody says otherwise."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path

import pytest
from celery import Celery
from celery.app.defaults import DEFAULTS

from cloche.settings import Resolved, load, set_by_app
from cloche.settings.celery_app import MAPPED, WORKER

NOWHERE = Path("/nonexistent")


def _load(environ: dict[str, str] | None = None, **conf: object) -> Resolved:
    app = Celery("t", set_as_current=False)
    app.conf.update(conf)
    return load(environ=environ or {}, directory=NOWHERE, app_conf=set_by_app(app.conf))


def test_the_keys_of_an_application_become_ours() -> None:
    settings = _load(
        broker_url=["redis://a/0", "redis://b/0"],
        broker_transport_options={"visibility_timeout": 7200, "global_keyprefix": "x"},
        result_backend="django-db",
        result_expires=timedelta(days=1),
        task_default_queue="jobs",
        task_time_limit=30,
        timezone="Europe/Berlin",
        worker_prefetch_multiplier=4,
        worker_max_memory_per_child=1000,
        cloche_sync_concurrency=3,
        worker_concurrency=0,
        worker_hijack_root_logger=False,
    ).settings
    assert settings.broker.url is not None
    assert settings.broker.url.get_secret_value() == "redis://a/0;redis://b/0"
    assert settings.broker.visibility_timeout == 7200
    assert settings.results.expires == timedelta(days=1)
    assert settings.tasks.default_queue == "jobs"
    assert settings.tasks.time_limit == 30
    assert settings.timezone == "Europe/Berlin"
    assert settings.worker.prefetch == 4
    assert settings.worker.max_memory_per_child == 1000 * 1024
    assert settings.worker.sync_concurrency == 3
    assert settings.worker.concurrency is None
    assert settings.workers == {}, "what they are, not which there are"


def test_the_origin_is_the_key_of_the_application() -> None:
    resolved = _load(broker_transport_options={"socket_timeout": 9})
    origin = resolved.origin("broker.socket_timeout")
    assert str(origin) == "app.conf.broker_transport_options.socket_timeout"


def test_worker_settings_are_those_of_every_worker() -> None:
    environ = {"CLOCHE_WORKERS__A__PREFETCH": "2", "CLOCHE_WORKERS__B__QUEUES": "q"}
    settings = _load(environ, worker_prefetch_multiplier=8).settings
    workers = {name: one.on(settings.worker) for name, one in settings.workers.items()}
    assert {name: worker.prefetch for name, worker in workers.items()} == {"a": 2, "b": 8}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("worker_pool", "gevent"),
        ("worker_pool", "proj.pool:TaskPool"),
        ("worker_concurrency", -1),
        ("timezone", timezone(timedelta(hours=2))),
        ("broker_url", "custom.transport:Transport://h"),
        ("result_backend", object),
        ("task_time_limit", "soon"),
        ("result_expires", None),
        ("broker_transport_options", {"visibility_timeout": 0.5, "lease": -1}),
    ],
)
def test_a_value_that_cannot_be_ours_stays_the_applications(key: str, value: object) -> None:
    resolved = _load({}, **{key: value})
    assert resolved.settings == load(environ={}, directory=NOWHERE).settings
    assert resolved.changed() == ()


def test_limits_that_contradict_each_other_are_the_applications_to_mend() -> None:
    resolved = _load(task_soft_time_limit=60, task_time_limit=30, task_acks_late=False)
    assert resolved.settings.tasks.time_limit is None
    assert resolved.changed() == ()


def test_a_stop_takes_as_long_as_the_application_lets_its_tasks_have() -> None:
    stop = _load(worker_soft_shutdown_timeout=120).settings.stop
    assert (stop.soft, stop.grace) == (120, 135)
    assert _load().settings.stop.grace == 45


def test_an_application_that_says_nothing_of_workers_leaves_simple_mode() -> None:
    assert _load(broker_url="redis://h").settings.workers == {}


class Modern:
    result_backend = "django-db"
    task_default_queue = "jobs"


class Django:
    CELERY_RESULT_BACKEND = "django-db"
    CELERY_TASK_DEFAULT_QUEUE = "jobs"
    DEBUG = True


class Ancient:
    CELERY_RESULT_BACKEND = "django-db"
    CELERY_DEFAULT_QUEUE = "jobs"


@pytest.mark.parametrize(
    ("source", "namespace"), [(Modern, None), (Django, "CELERY"), (Ancient, None)]
)
def test_every_way_to_configure_an_application_is_understood(
    source: type, namespace: str | None
) -> None:
    app = Celery("t", set_as_current=False, broker="redis://h/3")
    app.config_from_object(source, namespace=namespace)
    app.conf.worker_concurrency = 3
    assert set_by_app(app.conf) == {
        "broker_url": "redis://h/3",
        "result_backend": "django-db",
        "task_default_queue": "jobs",
        "worker_concurrency": 3,
    }


@pytest.mark.parametrize("key", [mapped.celery for mapped in (*MAPPED, *WORKER)])
def test_every_key_we_map_is_one_of_celery_or_our_own(key: str) -> None:
    assert key in DEFAULTS or key.startswith("cloche_")
