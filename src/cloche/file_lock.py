"""Locks on files: the kernel frees them with the process that holds them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process.

    The file is made (0600) if it is not there; its directory must be.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def try_acquire(cls, path: Path) -> Self | None:
        """The lock, or None if somebody holds it. Raises OSError."""
        try:
            return cls._acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """The lock, as soon as nobody holds it. Raises OSError."""
        return cls._acquire(path, fcntl.LOCK_EX)

    @classmethod
    def _acquire(cls, path: Path, how: int) -> Self:
        while True:
            lock = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                fcntl.flock(lock._descriptor, how)
                if lock._is_at(path):
                    return lock
            except BaseException:
                lock.release()
                raise
            lock.release()  # removed between the opening and the locking

    def _is_at(self, path: Path) -> bool:
        try:
            return os.fstat(self._descriptor).st_ino == path.stat().st_ino
        except FileNotFoundError:
            return False

    def write(self, content: bytes) -> None:
        """Let the locked file hold that, for whoever wants to know who has it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    def release(self) -> None:
        """Give the lock back; further calls do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class LeaderFileLock:
    """One leader per run directory, used as the broker's leader lock is, where it can hold none."""

    def __init__(self, path: Path) -> None:
        self.me = f"pid {os.getpid()}"
        self.taken = 0
        self._path = path
        self._lock: FileLock | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours; takes it if it is free."""
        if self._lock is None:
            self._lock = FileLock.try_acquire(self._path)
            if self._lock is not None:
                self._lock.write(str(os.getpid()).encode())
                self.taken += 1
        return self._lock is not None

    @property
    def holder(self) -> str:
        try:
            return f"pid {self._path.read_text().strip()}"
        except OSError:
            return "another process"

    def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _ = self.held

    def stop(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def lost(self) -> None:
        """Nobody can take it from us."""
