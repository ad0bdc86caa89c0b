"""Lines kept on the local disk until they are sent: segments of a process, in order.

::

    <directory>/<process>/lock             held by the process for as long as it lives
    <directory>/<process>/00000001.jsonl   one line a record, newest segment last

A process writes only its own directory, without asking anybody. What a process left that ended is
taken over by the next one that looks, which holds the lock instead. A line without its newline was
never accepted: its process died while writing it.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from cloche.errors import SpoolFullError
from cloche.file_lock import FileLock

logger = logging.getLogger(__name__)

#: Bytes after which a segment takes no more: one is read and sent at a time.
SEGMENT = 512 * 1024
#: Bytes written between two looks at how much others keep.
_LOOK_EVERY = 4 * SEGMENT
#: Seconds between two looks while there is no room.
_LOOK_PAUSE = 0.2

Fsync = Literal["always", "interval", "never"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What waits on disk: bytes, segments, processes that live and that have ended."""

    bytes: int
    segments: int
    living: int
    ended: int


class ProcessSpool:
    """The directory of one process, open: nobody else touches it."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def new(cls, directory: Path) -> Self:
        """One of our own. Raises OSError."""
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir(parents=True, mode=0o700)
        drawer = cls.taken(path)
        if drawer is None:  # somebody took it for a dead one's before it was locked
            return cls.new(directory)
        return drawer

    @classmethod
    def taken(cls, path: Path) -> Self | None:
        """That of another process, if it has ended."""
        try:
            lock = FileLock.try_acquire(path / "lock")
        except OSError:  # its last owner removed it
            return None
        return None if lock is None else cls(path, lock)

    def segments(self) -> list[Path]:
        return sorted(self.path.glob("*.jsonl"))

    def remove(self) -> None:
        """Forget the directory, which must have no segments."""
        with suppress(OSError):
            (self.path / "lock").unlink()
            self.path.rmdir()
        self.release()

    def release(self) -> None:
        self._lock.release()


class RecordSpool:
    """What this process keeps. Any thread may append; one at a time sends."""

    def __init__(self, directory: Path, *, limit: int, fsync: Fsync) -> None:
        self.directory = directory
        self._limit = limit
        self._fsync = fsync
        self._lock = threading.Lock()
        self._drawer: ProcessSpool | None = None
        self._handle = -1
        self._number = 0
        self._size = 0  # of the segment being written
        self._own = 0  # of all of ours
        self._others = 0
        self._unlooked = _LOOK_EVERY + 1
        self._looked_at = 0.0

    def append(self, lines: bytes) -> None:
        """Keep whole lines. They outlive this process when it returns.

        Raises SpoolFullError at the cap, OSError where the disk takes no more; then nothing is
        kept.
        """
        with self._lock:
            self._check_room(len(lines))
            if self._handle < 0 or self._size + len(lines) > SEGMENT:
                self._seal()
                self._open()
            self._write(lines)
            if self._fsync == "always":
                os.fdatasync(self._handle)

    def _check_room(self, more: int) -> None:
        self._unlooked += more
        if self._unlooked > _LOOK_EVERY or self._is_full(more):
            self._look()
        if self._is_full(more):
            raise SpoolFullError(
                f"{self.directory} holds {self._own + self._others} bytes",
                fix="bring the broker back, or raise logs.max_spool",
            )

    def _is_full(self, more: int) -> bool:
        return self._own + self._others + more > self._limit

    def _look(self) -> None:
        """What others keep; while there is no room not at every line."""
        now = time.monotonic()
        if self._unlooked > _LOOK_EVERY or now - self._looked_at >= _LOOK_PAUSE:
            self._unlooked, self._looked_at = 0, now
            self._others = kept(self.directory).bytes - self._own

    def _write(self, lines: bytes) -> None:
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._handle, memoryview(lines)[written:])
        except OSError:
            os.ftruncate(self._handle, self._size)
            raise
        self._size += written
        self._own += written

    def _open(self) -> None:
        if self._drawer is None:
            self._drawer = ProcessSpool.new(self.directory)
        self._number += 1
        path = self._drawer.path / f"{self._number:08}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o600)
        self._size = 0

    def _seal(self) -> None:
        """The segment being written takes no more."""
        if self._handle < 0:
            return
        if self._fsync == "interval":
            os.fdatasync(self._handle)
        os.close(self._handle)
        self._handle = -1

    @property
    def pending(self) -> bool:
        """Whether anything of this process waits."""
        return self._own > 0

    def sealed(self) -> Iterator[Path]:
        """This process's segments, the oldest first, as long as each is told as `done`.

        What is appended meanwhile comes last.
        """
        while True:
            with self._lock:
                if self._own == 0 or self._drawer is None:
                    return
                found = self._drawer.segments()
                if len(found) == 1:
                    self._seal()
            if not found:
                return
            yield found[0]
            if found[0].exists():
                return

    def done(self, segment: Path) -> None:
        """It was sent: forget it."""
        with self._lock:
            self._own -= segment.stat().st_size
            segment.unlink()

    def close(self) -> None:
        """Leave what waits to the next process."""
        with self._lock:
            self._seal()
            drawer, self._drawer = self._drawer, None
            if drawer is not None:
                drawer.release() if drawer.segments() else drawer.remove()
            self._own = 0

    def abandon(self) -> None:
        """In a forked child: the parent goes on with what is open; this process starts anew."""
        if self._handle >= 0:
            os.close(self._handle)
        if self._drawer is not None:
            self._drawer.release()
        self.__init__(self.directory, limit=self._limit, fsync=self._fsync)  # type: ignore[misc]


def orphans(directory: Path) -> Iterator[ProcessSpool]:
    """What ended processes left, the oldest first, each held until it is given back."""
    for path in _by_age(directory):
        drawer = ProcessSpool.taken(path)
        if drawer is None:
            continue
        if not drawer.segments():
            drawer.remove()
            continue
        yield drawer


def _by_age(directory: Path) -> list[Path]:
    found = []
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            with suppress(OSError):
                found.append((path.stat().st_ctime, path))
    return [path for _, path in sorted(found)]


def kept(directory: Path) -> Kept:
    size = segments = living = ended = 0
    for path in _by_age(directory):
        files = list(path.glob("*.jsonl"))
        for file in files:
            with suppress(FileNotFoundError):
                size += file.stat().st_size
                segments += 1
        drawer = ProcessSpool.taken(path)
        if drawer is None:
            living += 1
            continue
        drawer.release()
        ended += bool(files)
    return Kept(size, segments, living, ended)


def lines_of(segment: Path) -> tuple[list[bytes], bool]:
    """Its whole lines, newlines included, and whether a torn one was left out."""
    content = segment.read_bytes()
    whole, newline, torn = content.rpartition(b"\n")
    return (whole + newline).splitlines(keepends=True), bool(torn)
