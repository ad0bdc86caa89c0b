"""Which pool a worker takes, and what follows from it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, _state

from cloche.aio.task import async_task
from cloche.errors import CoroutineTaskError
from cloche.launch.pools import COROUTINES, cores, foreseen, pool_note, resolve_worker
from cloche.launch.workers import any_worker
from cloche.settings.celery_app import set_by_app
from cloche.settings.loading import load
from cloche.settings.model import WorkerSettings

#: What Celery registers in every application.
_CELERYS = {
    register
    for register in _state._on_app_finalizers
    if register.__module__ == "celery.app.builtins"
}


@pytest.fixture
def app() -> Iterator[Celery]:
    before = set(_state._on_app_finalizers)
    # Shared tasks of other tests' modules would be this application's, too.
    _state._on_app_finalizers.intersection_update(_CELERYS)
    own = Celery("pools", broker="memory://", set_as_current=False)
    own.conf.task_routes = {"mail.*": {"queue": "mail"}}
    own.conf.task_default_queue = "default"
    yield own
    own.close()
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(before)


def coroutine(app: Celery, name: str, **options: Any) -> None:
    @async_task(app=app, name=name, shared=False, **options)
    async def task() -> None: ...


def plain(app: Celery, name: str) -> None:
    @app.task(name=name, shared=False)
    def task() -> None: ...


def test_a_worker_whose_tasks_are_all_coroutines_takes_asyncio_one_process_per_core(
    app: Celery,
) -> None:
    coroutine(app, "one")
    coroutine(app, "two")
    worker = resolve_worker(app, WorkerSettings())
    assert (worker.pool, worker.concurrency, worker.processes) == ("asyncio", COROUTINES, cores())
    assert worker.max_tasks_per_child is None


def test_one_plain_task_keeps_a_worker_in_processes(app: Celery) -> None:
    coroutine(app, "one")
    plain(app, "two")
    worker = resolve_worker(app, WorkerSettings())
    assert (worker.pool, worker.processes, worker.max_tasks_per_child) == ("prefork", 1, 1000)


def test_a_plain_function_that_runs_a_coroutine_is_a_plain_task(app: Celery) -> None:
    async def send() -> int:
        return 1

    @app.task(name="mail.send", shared=False)
    @functools.wraps(send)
    def run() -> int:
        return asyncio.run(send())

    assert resolve_worker(app, WorkerSettings(pool="auto")).pool == "prefork"


def test_only_the_tasks_of_its_queues_count(app: Celery) -> None:
    plain(app, "one")
    coroutine(app, "mail.send")
    coroutine(app, "urgent", queue="mail")
    assert resolve_worker(app, WorkerSettings(queues=("mail",))).pool == "asyncio"
    assert resolve_worker(app, WorkerSettings(exclude_queues=("mail",))).pool == "prefork"


def test_a_project_without_tasks_stays_with_prefork(app: Celery) -> None:
    assert resolve_worker(app, WorkerSettings()).pool == "prefork"


def test_what_is_set_stays_as_it_is(app: Celery) -> None:
    coroutine(app, "one")
    asked = WorkerSettings(pool="threads", concurrency=3, processes=2)
    worker = resolve_worker(app, asked)
    assert (worker.pool, worker.concurrency, worker.processes) == ("threads", 3, 2)
    asked = WorkerSettings(pool="asyncio", concurrency=5, processes=1, max_tasks_per_child=7)
    worker = resolve_worker(app, asked)
    assert (worker.concurrency, worker.processes, worker.max_tasks_per_child) == (5, 1, 7)


def test_an_async_def_that_its_pool_would_not_await_is_refused(app: Celery) -> None:
    @app.task(name="forgotten", shared=False)
    async def forgotten() -> None: ...

    plain(app, "other")
    with pytest.raises(CoroutineTaskError, match=r"^forgotten is an async def"):
        resolve_worker(app, WorkerSettings())
    assert resolve_worker(app, WorkerSettings(pool="asyncio")).pool == "asyncio"


def test_a_launcher_leaves_broken_modules_to_the_worker(app: Celery) -> None:
    app.conf.include = ("no.such.module",)
    coroutine(app, "one")
    worker = foreseen(app, WorkerSettings())
    assert (worker.pool, worker.processes) == ("prefork", 1)


@pytest.mark.parametrize("name", ["asyncio", "cloche.aio.pool:TaskPool"])
def test_an_application_may_name_the_pool_itself(name: str) -> None:
    app = Celery("named", broker="memory://", set_as_current=False)
    app.conf.worker_pool = name
    resolved = load(environ={}, app_conf=set_by_app(app.conf))
    assert any_worker(resolved.settings).pool == "asyncio"


def test_a_worker_that_no_setting_names_takes_only_what_the_application_says() -> None:
    said = {"workers.main.concurrency": 3, "workers.main.queues": ["a"]}
    resolved = load(said, environ={}, app_conf={"worker_pool": "threads"})
    worker = any_worker(resolved.settings)
    assert (worker.pool, worker.concurrency, worker.queues) == ("threads", None, ())


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("gevent", "threads"),
        ("celery.concurrency.eventlet:TaskPool", "threads"),
        ("proj.pool:TaskPool", "proj.pool:TaskPool"),
    ],
)
def test_a_pool_that_is_none_of_ours_stops_nothing(app: Celery, name: str, used: str) -> None:
    app.conf.worker_pool = name
    plain(app, "one")
    settings = load(environ={}, app_conf=set_by_app(app.conf)).settings
    assert resolve_worker(app, any_worker(settings)).pool == used
    assert bool(pool_note(app, settings)) is (used == "threads"), "it is told"
    chosen = load({"worker.pool": "solo"}, environ={}, app_conf=set_by_app(app.conf)).settings
    assert resolve_worker(app, any_worker(chosen)).pool == "solo"
    assert not pool_note(app, chosen)
