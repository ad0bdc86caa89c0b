"""A log file that is rotated by size."""

from __future__ import annotations

import os
from pathlib import Path


class LogFile:
    """``path``, and ``path.1`` … ``path.<backups>`` from new to old, each ``limit`` bytes at most.

    Bytes are written as they come. A full disk loses lines, never a process: ``lost``
    counts the bytes.
    """

    def __init__(self, path: Path, *, limit: int = 10 * 1024**2, backups: int = 3) -> None:
        self.path = path
        self.lost = 0
        self._limit = limit
        self._backups = backups
        self._handle = self._open()
        self._size = os.fstat(self._handle).st_size if self._handle >= 0 else 0

    def write(self, data: bytes) -> None:
        """Append; starts a new file first when this one is full."""
        try:
            if self._size + len(data) > self._limit and self._size:
                self._rotate()
            self._size += os.write(self._handle, data)
        except OSError:
            self.lost += len(data)

    def close(self) -> None:
        """May be called twice; what is written later is lost."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return -1

    def _rotate(self) -> None:
        for number in range(self._backups, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self.close()
        self._handle = self._open()
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
