"""What the transport changes of Celery, and Celery's side of each change."""

from __future__ import annotations

import inspect
import subprocess
import sys

import kombu.pools
import pytest
from celery import signals
from celery.app.task import Context, Task
from celery.concurrency import asynpool
from celery.worker import consumer, control, request, state, strategy
from kombu import Connection
from kombu.utils.objects import cached_property

from cloche.broker import celery_hooks


def test_celery_names_the_class_of_requests_where_ours_is_put() -> None:
    assert celery_hooks._STOCK_REQUEST == "celery.worker.request:Request"
    assert "Task.Request = " not in inspect.getsource(strategy)
    assert "symbol_by_name(task.Request)" in inspect.getsource(strategy.default)


@pytest.mark.parametrize(
    ("signal", "arguments"),
    [
        (signals.worker_ready, set()),
        (signals.task_unknown, {"message", "exc", "name", "id"}),
        (signals.task_rejected, {"message", "exc"}),
    ],
)
def test_celery_sends_the_signals_with_what_is_read(
    signal: signals.Signal, arguments: set[str]
) -> None:
    assert arguments <= signal.providing_args


def test_remote_control_has_the_commands_that_are_wrapped() -> None:
    assert {"revoke", "scheduled", "dump_schedule", "query_task", "stats"} <= set(
        control.Panel.data
    )
    assert list(inspect.signature(control.revoke).parameters)[:2] == ["state", "task_id"]
    assert list(inspect.signature(control.query_task).parameters)[:2] == ["state", "ids"]


def test_the_prefork_pool_is_flushed_when_a_connection_is_lost() -> None:
    assert "self.pool.flush()" in inspect.getsource(consumer.Consumer.on_close)
    assert "_fileno_to_outq" in inspect.getsource(asynpool.AsynPool.__init__)


def test_a_request_asks_before_it_runs_whether_it_was_dropped() -> None:
    assert "self.revoked()" in inspect.getsource(request.Request.execute_using_pool)
    assert "_already_revoked" in inspect.getsource(request.Request.revoked)
    assert "_terminate_on_ack" in inspect.getsource(request.Request.on_accepted)
    assert {"reserved_requests", "active_requests", "task_ready"} <= vars(state).keys()


def test_celerys_context_says_nothing_of_leases() -> None:
    assert "lease_lost" not in Context.__annotations__


def test_kombu_keeps_its_pools_and_locks_where_a_child_makes_them_anew() -> None:
    assert {"connections", "producers"} <= vars(kombu.pools).keys()
    assert isinstance(vars(Connection)["default_channel"], property)
    assert hasattr(cached_property(lambda self: None), "lock")


NOTHING = """
import pkgutil, importlib
from celery import signals
from celery.app.task import Context, Task
from celery.worker import control
watched = [signals.worker_ready, signals.task_unknown, signals.task_rejected,
           signals.worker_shutdown]
def seen():
    return (Task.Request, hasattr(Context, "lease_lost"), [len(s.receivers) for s in watched],
            sorted(map(str, control.Panel.data.values())))
before = seen()
for room in ("broker", "worker", "aio"):
    package = importlib.import_module(f"cloche.{room}")
    for found in pkgutil.walk_packages(package.__path__, f"cloche.{room}."):
        importlib.import_module(found.name)
assert seen() == before, (before, seen())
"""


def test_importing_a_module_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOTHING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_connection_installs_all_of_it_once() -> None:
    celery_hooks.install()
    before = len(signals.worker_ready.receivers)
    celery_hooks.install()
    assert Task.Request == celery_hooks._REQUEST
    assert isinstance(vars(Context)["lease_lost"], property)
    assert len(signals.worker_ready.receivers) == before
