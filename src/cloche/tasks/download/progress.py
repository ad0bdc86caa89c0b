"""How far a transfer is: written by the transfer, read by who reports it."""

from __future__ import annotations

import time
from collections import deque

#: Seconds of the past that the rate is measured over.
_WINDOW = 5.0


class Progress:
    """Counters of one transfer. ``received`` and ``total`` in bytes."""

    def __init__(self) -> None:
        self.received = 0
        self.total: int | None = None
        self.restarts = 0
        self._samples: deque[tuple[float, int]] = deque()

    def rate(self) -> float:
        """Bytes per second over the last seconds; asked by one thread only."""
        now, received = time.monotonic(), self.received
        if self._samples and received < self._samples[-1][1]:
            self._samples.clear()  # started over
        self._samples.append((now, received))
        while len(self._samples) > 2 and self._samples[0][0] < now - _WINDOW:
            self._samples.popleft()
        (before, least) = self._samples[0]
        return (received - least) / (now - before) if now > before else 0.0
