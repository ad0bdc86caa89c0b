"""What became of the records of a logger, here and on disk: nothing is lost uncounted."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import orjson

from cloche.errors import SettingsError
from cloche.file_lock import FileLock

Mode = Literal["spool", "direct", "drop"]

MODES: tuple[Mode, ...] = get_args(Mode)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Records that are lost for one reason, by all processes; when the last was (Unix seconds)."""

    count: int
    last: float


class LogDirectory:
    """``<run_dir>/execution-log``: the spool, the mode set at run time, what was dropped."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir.absolute() / "execution-log"
        self.spool = self.path / "spool"
        self._mode = self.path / "fallback"
        self._dropped = self.path / "dropped.json"

    def mode(self, default: Mode) -> Mode:
        """What to do while the broker is away: as set at run time, else ``default``."""
        try:
            found = self._mode.read_text().strip()
        except OSError:
            return default
        return next((mode for mode in MODES if mode == found), default)

    def set_mode(self, mode: Mode | None) -> None:
        """Change it for all processes, at their next flush; None: what their settings say."""
        self._make()
        if mode is None:
            self._mode.unlink(missing_ok=True)
            return
        fresh = self._mode.with_name(f"fallback.{os.getpid()}")
        fresh.write_text(f"{mode}\n")
        fresh.replace(self._mode)

    def dropped(self) -> dict[str, Dropped]:
        try:
            found = orjson.loads(self._dropped.read_bytes() or b"{}")
        except (OSError, orjson.JSONDecodeError):
            return {}
        return {reason: Dropped(**one) for reason, one in found.items()}

    def add_dropped(self, more: Mapping[str, int]) -> None:
        """Count further ones. Raises SettingsError or OSError."""
        now = time.time()
        with self._alone():
            all = self.dropped()
            for reason, count in more.items():
                before = all[reason].count if reason in all else 0
                all[reason] = Dropped(before + count, now)
            fresh = self._dropped.with_suffix(".new")
            fresh.write_bytes(orjson.dumps({reason: asdict(one) for reason, one in all.items()}))
            fresh.replace(self._dropped)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._make()
        with FileLock.acquire(self.path / "dropped.lock"):
            yield

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SettingsError(
                f"{self.path} cannot be made",
                why=str(error),
                fix="set run_dir to a place this user may write to",
            ) from error


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

    def __init__(self, place: LogDirectory) -> None:
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
