"""Cloche's execution log; its settings come by the environment, as for its worker."""

from __future__ import annotations

import os

from cloche import ExecutionLogger, create_app

app = create_app("bench-logs")
logger = ExecutionLogger(app, durable=bool(os.environ.get("BENCH_DURABLE")))
log = logger.log


def finish() -> None:
    logger.flush(60)
