"""What the harness tells an app through the environment."""

from __future__ import annotations

import os

URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0")
QUEUE = os.environ.get("BENCH_QUEUE", "bench")
SETTING = os.environ.get("BENCH_SETTING", "ignored")
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "10"))

STORED = SETTING != "ignored"
PRODUCTION = SETTING == "production"
