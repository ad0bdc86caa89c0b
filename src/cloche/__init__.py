"""Cloche: the production layer for Celery.

The application: :func:`create_app`, :func:`harden`.
Coroutines: :func:`async_task`, :class:`AsyncTask`, :func:`resource`, :func:`close_resources`.
Outages: :func:`resilient`, :class:`Resilience`.
Sending: :func:`publish_many`, :func:`map_delay`; waiting: :func:`aget`.
Settings: :func:`load`, :class:`Settings`.
Processes: :class:`Supervisor`, :func:`discover_existing_workers`,
:func:`stop_all_existing_workers`.
Downloads: :class:`Downloads`.
The execution log: :class:`ExecutionLogger`, :class:`LogRecord`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.aio.resources import close_resources, resource
    from cloche.aio.results import aget
    from cloche.aio.task import AsyncTask, async_task
    from cloche.app import create_app, harden
    from cloche.app.resilience import Resilience, resilient
    from cloche.broker.publish.bulk import map_delay, publish_many
    from cloche.launch.discovery import discover_existing_workers, stop_all_existing_workers
    from cloche.logs.record import LogRecord
    from cloche.logs.write.logger import ExecutionLogger
    from cloche.process.supervisor import Supervisor
    from cloche.settings import Settings, load
    from cloche.tasks.download import Downloads

__all__ = [
    "AsyncTask",
    "Downloads",
    "ExecutionLogger",
    "LogRecord",
    "Resilience",
    "Settings",
    "Supervisor",
    "aget",
    "async_task",
    "close_resources",
    "create_app",
    "discover_existing_workers",
    "harden",
    "load",
    "map_delay",
    "publish_many",
    "resilient",
    "resource",
    "stop_all_existing_workers",
]

_HOMES = {
    "create_app": "cloche.app",
    "harden": "cloche.app",
    "Resilience": "cloche.app.resilience",
    "resilient": "cloche.app.resilience",
    "AsyncTask": "cloche.aio.task",
    "async_task": "cloche.aio.task",
    "close_resources": "cloche.aio.resources",
    "resource": "cloche.aio.resources",
    "aget": "cloche.aio.results",
    "map_delay": "cloche.broker.publish.bulk",
    "publish_many": "cloche.broker.publish.bulk",
    "Settings": "cloche.settings",
    "load": "cloche.settings",
    "Downloads": "cloche.tasks.download",
    "Supervisor": "cloche.process.supervisor",
    "discover_existing_workers": "cloche.launch.discovery",
    "stop_all_existing_workers": "cloche.launch.discovery",
    "ExecutionLogger": "cloche.logs.write.logger",
    "LogRecord": "cloche.logs.record",
}


def __getattr__(name: str) -> object:
    # On first use (PEP 562): every command passes through this file, and Celery, pydantic
    # and SQLAlchemy would make `cloche --help` wait a second.
    if name not in _HOMES:
        raise AttributeError(f"module 'cloche' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
