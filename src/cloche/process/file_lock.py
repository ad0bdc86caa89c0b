"""The same where the broker cannot hold a lock: one process per run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class LeaderFileLock:
    """A locked file, used as the broker's lock is; the kernel frees it with its process."""

    def __init__(self, path: Path) -> None:
        self.me = f"pid {os.getpid()}"
        self.taken = 0
        self._path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours; takes it if it is free."""
        if self._handle is None:
            self._try()
        return self._handle is not None

    @property
    def holder(self) -> str:
        try:
            return f"pid {self._path.read_text().strip()}"
        except OSError:
            return "another process"

    def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._try()

    def stop(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def lost(self) -> None:
        """Nobody can take it from us."""

    def _try(self) -> None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._handle = handle
        self.taken += 1
