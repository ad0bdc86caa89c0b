"""Sentry's tests of its Celery integration: eager as they are, and with a worker.

Where a pool is asked for, what they run eagerly goes through a server and a worker in this
process (events are captured here, so that prefork is out), and ``apply_async`` comes back when
the worker is done with the task, as it does eagerly.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, current_task
from celery.result import AsyncResult

from .environment import POOL, URL

#: Where a real server is used, the tests name this one.
TESTS_URL = "redis://127.0.0.1:6379"
BEAT = "tests.integrations.celery.integration_tests.test_celery_beat_cron_monitoring"
REDIS = "sentry_sdk.integrations.redis.RedisIntegration"
#: Seconds a worker gets for one task.
PATIENCE = 30


class Workers:
    """The worker of each app, from its first task to the end of the test."""

    def __init__(self) -> None:
        self._started = contextlib.ExitStack()
        self._apps: set[Celery] = set()

    def need(self, app: Celery) -> None:
        if app not in self._apps:
            self._apps.add(app)
            app.conf.update(broker_url=URL, result_backend=URL, task_always_eager=False)
            # Only now: in a worker an app, and with it Sentry, is imported before Celery's worker.
            testing = importlib.import_module("celery.contrib.testing.worker")
            worker = testing.start_worker(app, pool=POOL, perform_ping_check=False)
            self._started.enter_context(worker)

    def stop(self) -> None:
        self._apps.clear()
        self._started.pop_all().close()


WORKERS = Workers()


def pytest_configure(config: pytest.Config) -> None:
    connect = Celery.__init__

    def __init__(self: Celery, *args: Any, broker: str | None = None, **options: Any) -> None:
        connect(self, *args, broker=_ours(broker) or URL, backend=URL, **options)

    Celery.__init__ = __init__
    if POOL != "eager":
        _wait_for_the_worker()


def _ours(url: str | None) -> str | None:
    """Its host stays: some tests name one that is not there."""
    return url and url.replace("redis://", URL.partition("//")[0] + "//")


def _wait_for_the_worker() -> None:
    """Before Sentry wraps ``apply_async``, so that it sees what it sees eagerly."""
    publish = Task.apply_async

    def apply_async(self: Task, *args: Any, **options: Any) -> Any:
        app = self._get_app()
        if app.conf.task_always_eager and threading.current_thread() is threading.main_thread():
            WORKERS.need(app)
        result = publish(self, *args, **options)
        if isinstance(result, AsyncResult) and not current_task:
            result.get(timeout=PATIENCE, propagate=False)
            _done(result.id)
        return result

    Task.apply_async = apply_async


def _done(task_id: str) -> None:
    """The result is stored while the task is still being traced; wait for what comes after."""
    state = sys.modules["celery.worker.state"]
    deadline = time.monotonic() + PATIENCE
    while task_id in state.requests and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    WORKERS.stop()
    yield


def pytest_collection_modifyitems() -> None:
    # They count spans, and know of no server: those of Redis would come between.
    enabled = sys.modules["sentry_sdk.integrations"]._AUTO_ENABLING_INTEGRATIONS
    if POOL != "eager" and REDIS in enabled:
        enabled.remove(REDIS)
    if BEAT in sys.modules:
        module: Any = sys.modules[BEAT]
        module.REDIS_SERVER = URL.rpartition("/")[0]
