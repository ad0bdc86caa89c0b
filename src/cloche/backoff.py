"""How long to wait before the next attempt: pure arithmetic, no clock."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off: ``first * factor ** (attempt - 1)``, at most ``limit`` seconds.

    ``jitter`` is the largest share of the delay taken away at random (0 to 1), so that
    many clients that failed together do not come back together.
    """

    first: float = 0.5
    factor: float = 2.0
    limit: float = 30.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.first < 0 or self.factor < 1 or self.limit < 0 or not 0 <= self.jitter <= 1:
            raise ValueError(f"not a back-off: {self!r}")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the ``attempt``-th failure (the first failure is 1)."""
        if attempt < 1:
            raise ValueError("attempts are counted from 1")
        try:
            full = min(self.limit, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            full = self.limit
        return full * (1 - self.jitter * random.random())  # noqa: S311 (not a secret)

    def delays(self, attempts: int) -> Iterator[float]:
        """The waits between ``attempts`` tries: one fewer than the tries."""
        return (self.delay(number) for number in range(1, attempts))
