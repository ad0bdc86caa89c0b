"""Where the execution log keeps its files, shared by all processes of a run directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import orjson

from cloche.errors import SettingsError

Mode = Literal["spool", "direct", "drop"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Records that are lost for one reason, by all processes; when the last was (Unix seconds)."""

    count: int
    last: float


class Place:
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
        """By reason."""
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
        with open(self.path / "dropped.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
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
