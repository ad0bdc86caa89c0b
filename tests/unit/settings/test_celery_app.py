"""What an existing Celery application set itself stands, unless somebody says otherwise."""

from __future__ import annotations

from datetime import timedelta
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
    assert settings.workers["main"].prefetch == 4
    assert settings.workers["main"].max_memory_per_child == 1000 * 1024
    assert settings.workers["main"].sync_concurrency == 3
    assert settings.workers["main"].concurrency is None


def test_the_origin_is_the_key_of_the_application() -> None:
    resolved = _load(broker_transport_options={"socket_timeout": 9})
    origin = resolved.origin("broker.socket_timeout")
    assert str(origin) == "app.conf.broker_transport_options.socket_timeout"


def test_worker_settings_fill_the_workers_that_are_named() -> None:
    environ = {"CLOCHE_WORKERS__A__PREFETCH": "2", "CLOCHE_WORKERS__B__QUEUES": "q"}
    workers = _load(environ, worker_prefetch_multiplier=8).settings.workers
    assert {name: worker.prefetch for name, worker in workers.items()} == {"a": 2, "b": 8}


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
