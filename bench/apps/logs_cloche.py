"""Cloche's execution log."""

from __future__ import annotations

import os

from bench.apps import case
from bench.apps.logs_case import DATABASE
from cloche import ExecutionLogger, Settings, create_app

app = create_app(
    "bench-logs",
    Settings.model_validate(
        {
            "run_dir": os.environ.get("CLOCHE_RUN_DIR", ".cloche"),
            "broker": {"url": case.URL, "transport": os.environ.get("BENCH_TRANSPORT", "cloche")},
            "database": {"url": DATABASE},
        }
    ),
)
logger = ExecutionLogger(app, durable=bool(os.environ.get("BENCH_DURABLE")))
log = logger.log


def finish() -> None:
    logger.flush(60)
