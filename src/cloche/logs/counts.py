"""What became of the records of a logger: nothing is lost uncounted."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cloche.errors import SettingsError
from cloche.logs.place import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogStats:
    """Records of one logger in this process.

    ``buffered``: in memory; ``sent``: in messages; ``direct``: written without the broker;
    ``spooled``: put on disk, of which ``replayed`` left it again (and count as sent or direct);
    ``dropped``: lost, by reason.
    """

    accepted: int
    buffered: int
    sent: int
    direct: int
    spooled: int
    replayed: int
    dropped: Mapping[str, int]


class Counts:
    """Counts from any thread; what was dropped is told in the run directory too."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._of: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()

    def add(self, what: str, count: int) -> None:
        """``count`` more of sent, direct, spooled, replayed or taken (out of the buffer)."""
        with self._lock:
            self._of[what] += count

    def drop(self, reason: str, count: int) -> None:
        """So many are lost."""
        if not count:
            return
        with self._lock:
            first = reason not in self._dropped
            self._dropped[reason] += count
            self._untold[reason] += count
        if first:
            logger.warning("execution log: records are dropped: %s", reason)

    def tell(self) -> None:
        """Add what was dropped to the run directory's count."""
        with self._lock:
            untold, self._untold = self._untold, Counter()
        if not untold:
            return
        try:
            self._place.add_dropped(untold)
        except (OSError, SettingsError) as error:
            logger.warning("execution log: dropped records cannot be counted: %s", error)
            with self._lock:
                self._untold += untold

    def stats(self, buffered: int) -> LogStats:
        """All of it now."""
        with self._lock:
            of, dropped = self._of, dict(self._dropped)
            return LogStats(
                accepted=of["taken"] + of["turned away"] + buffered,
                buffered=buffered,
                sent=of["sent"],
                direct=of["direct"],
                spooled=of["spooled"],
                replayed=of["replayed"],
                dropped=dropped,
            )
