"""Locks between processes of this machine that die with their holder (``flock``)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def try_acquire(cls, path: Path) -> Self | None:
        """The lock, or None if somebody holds it."""
        try:
            return cls._acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """The lock, as soon as nobody holds it."""
        return cls._acquire(path, fcntl.LOCK_EX)

    @classmethod
    def _acquire(cls, path: Path, how: int) -> Self:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                fcntl.flock(lock._descriptor, how)
                if lock._is_at(path):
                    return lock
            except BaseException:
                lock.release()
                raise
            lock.release()  # swept between the opening and the locking

    def _is_at(self, path: Path) -> bool:
        try:
            return os.fstat(self._descriptor).st_ino == path.stat().st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock back; further calls do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of that file."""
    lock = FileLock.acquire(path)
    try:
        yield
    finally:
        lock.release()
