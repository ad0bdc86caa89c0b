"""A log file that is rotated by size."""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK = 64 * 1024


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


def logs_in(directory: Path) -> dict[str, Path]:
    """The log file of each process that printed something, by the process's name."""
    found = sorted(directory.glob("*.log")) if directory.is_dir() else []
    return {path.stem: path for path in found if path.stat().st_size}


class LogFileTail:
    """One growing file. ``news`` begins where ``last`` ended, or at the file's beginning."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._at = 0
        self._inode = 0
        self._partial = b""

    def last(self, count: int) -> list[bytes]:
        """The last ``count`` whole lines, without reading the rest of a large file."""
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                self._inode = os.fstat(file.fileno()).st_ino
                data, start = b"", end
                while start > 0 and data.count(b"\n") <= count:
                    size = min(_CHUNK, start)
                    start -= size
                    file.seek(start)
                    data = file.read(size) + data
        except OSError:
            return []
        self._at = end
        *lines, self._partial = data.split(b"\n")
        return lines[-count:] if count else []

    def news(self) -> list[bytes]:
        """Whole lines added since; after a rotation the rest of the old file comes first."""
        lines: list[bytes] = []
        try:
            inode = self._path.stat().st_ino
            if self._inode and inode != self._inode:
                lines += self._take(self._rotated())
                self._at = 0
            self._inode = inode
            lines += self._take(self._path)
        except OSError:
            pass  # in the moment of rotation: next time
        return lines

    def _take(self, path: Path) -> list[bytes]:
        with path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        return lines

    def _rotated(self) -> Path:
        return self._path.with_name(f"{self._path.name}.1")
