"""How many jobs of a kind run at once, and which wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from threading import RLock
from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """At most ``limit`` jobs at a time, begun in order by ``start``.

    ``start(job)`` says whether the job took its slot. Safe from several threads and from
    signal handlers (the lock may be taken again by the thread that holds it).
    """

    def __init__(self, limit: int, start: Callable[[T], bool]) -> None:
        self.limit = limit
        self._start = start
        self._waiting: deque[T] = deque()
        self.running = 0
        self._lock = RLock()

    def put(self, job: T) -> None:
        """Run the job now, or when its turn comes."""
        if self._waiting or not self._took_slot():
            self._waiting.append(job)
            if self.running < self.limit:
                self.fill()
        else:
            self._begin(job)

    def release(self) -> None:
        """A running job has ended: its slot is free."""
        with self._lock:
            self.running -= 1
        if self._waiting:
            self.fill()

    def fill(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self.running >= self.limit:
                    return
                self.running += 1
                job = self._waiting.popleft()
            self._begin(job)

    def _took_slot(self) -> bool:
        with self._lock:
            if self.running >= self.limit:
                return False
            self.running += 1
            return True

    def _begin(self, job: T) -> None:
        took = False
        try:
            took = self._start(job)
        finally:
            if not took:
                with self._lock:
                    self.running -= 1

    def remove(self, job: T) -> bool:
        """Take a waiting job out. False if it does not wait."""
        try:
            self._waiting.remove(job)
        except ValueError:
            return False
        return True

    def drop(self) -> Iterator[T]:
        """Take all waiting jobs out."""
        while self._waiting:
            yield self._waiting.popleft()

    def __len__(self) -> int:
        return len(self._waiting)
