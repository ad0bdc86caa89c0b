"""OpenTelemetry's tests of its Celery instrumentation: their app on our URL, their worker's pool.

They say ``memory://`` and ``rpc``; both sides use a server instead. Spans and metrics are read
where they are made: in this process, so that prefork is out.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import pytest

from .environment import POOL, URL

APP = "tests.celery_test_tasks"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As soon as their app is there."""
    if items:
        app = (sys.modules.get(APP) or importlib.import_module(APP)).app
        app.conf.update(broker_url=URL, result_backend=URL)
        app.Worker = functools.partial(_worker, app.Worker)


def _worker(worker: Any, *, pool: str, **options: Any) -> Any:
    """Theirs say ``pool="solo"``."""
    return worker(pool=POOL, **options)
