"""Reading log files from their end, and going on across rotation."""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK = 64 * 1024


def logs_in(directory: Path) -> dict[str, Path]:
    """The log file of each process that printed something, by the process's name."""
    found = sorted(directory.glob("*.log")) if directory.is_dir() else []
    return {path.stem: path for path in found if path.stat().st_size}


class Tail:
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
