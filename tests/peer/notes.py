"""What people found out about single tests. Names are as pytest writes them."""

from __future__ import annotations

_CANVAS = "t/integration/test_canvas.py::"
_TASKS = "t/integration/test_tasks.py::"

#: Why a test does not pass, where pytest's own words do not say it.
WHY = {
    _CANVAS + "test_chain::test_chord_soft_timeout_recuperation": (
        "needs soft time limits, which Celery has on prefork only"
    ),
    _TASKS + "test_task_replacement::test_replaced_task_nesting_level_0": (
        "races with its worker: sets its variable after `delay()`, by when ours may have delivered"
    ),
}
