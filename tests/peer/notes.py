"""What people found out about single tests. Names are as pytest writes them."""

from __future__ import annotations

_CANVAS = "t/integration/test_canvas.py::"
_TASKS = "t/integration/test_tasks.py::"
_SUBSCRIBES = (
    "asserts that `delay()` itself has subscribed to the result's channel; ours subscribes when "
    "somebody waits for the result, which saves every publish a command"
)

#: Why a test does not pass, where pytest's own words do not say it.
WHY = {
    _CANVAS + "test_chain::test_chord_soft_timeout_recuperation": (
        "needs soft time limits, which Celery has on prefork only"
    ),
    _TASKS + "test_task_replacement::test_replaced_task_nesting_level_0": (
        "races with its worker: sets its variable after `delay()`, by when ours may have delivered"
    ),
    "t/integration/test_inspect.py::test_Inspect::test_scheduled": (
        "asserts that a task with an `eta` waits in the worker; ours waits on the server, so that "
        "`inspect scheduled` does not list it"
    ),
    _TASKS
    + "test_task_redis_result_backend::test_asyncresult_forget_cancels_subscription": _SUBSCRIBES,
    _TASKS
    + "test_task_redis_result_backend::test_asyncresult_get_cancels_subscription": _SUBSCRIBES,
}
