"""Signs of life to systemd: ``WATCHDOG=1``, as often as it asks (sd_watchdog_enabled(3))."""

from __future__ import annotations

import os
import time

from cloche.process.notify import notify


def watchdog_period() -> float | None:
    """Seconds between two signs of life: half of what systemd waits. None if nobody waits."""
    try:
        usec = int(os.environ.get("WATCHDOG_USEC", ""))
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return usec / 2e6 if usec > 0 and pid == os.getpid() else None


class SignOfLife:
    """Gives one, when it is due, each time it is asked to."""

    def __init__(self) -> None:
        self._period = watchdog_period()
        self._due = 0.0

    @property
    def period(self) -> float | None:
        """Seconds within which it must be asked; None: never."""
        return self._period

    def give(self) -> None:
        """The process does its work: tell systemd if it is time to."""
        now = time.monotonic()
        if self._period is not None and now >= self._due:
            self._due = now + self._period / 2
            notify("WATCHDOG=1")
