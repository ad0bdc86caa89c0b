"""Loaded by Python itself where this directory is on its path: the wall clock is off.

The monotonic clock, the server's clock and ``time.clock_gettime`` are not.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

SHIFT = float(os.environ["SHIFT_SECONDS"])
true_time, true_time_ns = time.time, time.time_ns


class Shifted(datetime.datetime):
    """``now`` by the shifted clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time = lambda: true_time() + SHIFT
time.time_ns = lambda: true_time_ns() + int(SHIFT * 1e9)
datetime.datetime = Shifted  # type: ignore[misc]
