"""Downloaded files by content, unfinished ones by URL, and who may work on which."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from cloche.tasks.download.lock import FileLock, locked
from cloche.tasks.download.table import key

#: Age in seconds from which an unfinished file nobody waits for is removed.
PARTIAL_AGE = 86400.0


class Cache:
    """``<run_dir>/downloads``: ``objects/ab/<sha256>``, ``partial/<url>``, ``locks/``.

    An object is complete as soon as it is there: it is made durable under another name and
    renamed. Two URLs with the same content share one.
    """

    def __init__(self, run_dir: Path) -> None:
        self.root = run_dir.absolute() / "downloads"
        self._locks = self.root / "locks"

    def object_path(self, sha256: str) -> Path:
        """Where the content of that digest is, or would be."""
        return self.root / "objects" / sha256[:2] / sha256

    def partial_path(self, url: str) -> Path:
        """Where the unfinished file from ``url`` grows; its directory exists."""
        path = self.root / "partial" / key(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, file: Path, sha256: str) -> Path:
        """Move a complete file of the same file system into the store, durably."""
        target = self.object_path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync(file)
        os.replace(file, target)
        _sync(target.parent)
        return target

    def drop(self, sha256: str) -> None:
        """Delete an object."""
        self.object_path(sha256).unlink(missing_ok=True)

    def content_lock(self, sha256: str) -> AbstractContextManager[None]:
        """Held while an object and the rows that name it change together."""
        return locked(self._locks / f"content-{sha256}")

    def url_lock(self, url: str) -> FileLock | None:
        """The right to download ``url``; None while somebody else does."""
        return FileLock.try_acquire(self._locks / f"url-{key(url)}")

    def host_slot(self, host: str, slots: int) -> FileLock | None:
        """One of the ``slots`` of a host on this machine; None if all are taken."""
        name = key(host)
        for number in range(slots):
            slot = FileLock.try_acquire(self._locks / f"host-{name}-{number}")
            if slot is not None:
                return slot
        return None

    def discard_partial(self, url: str) -> None:
        """Remove what came so far from ``url``, unless somebody downloads it now."""
        for path in (self.root / "partial").glob(f"{key(url)}*"):
            self._remove_partial(path, key(url))

    def sweep(self, active: Iterable[str], age: float = PARTIAL_AGE) -> int:
        """Remove what crashes left: how many bytes that freed.

        Unfinished files untouched for ``age`` seconds go, unless their URL is ``active`` or
        being downloaded; so do lock files nobody holds.
        """
        keep = {key(url) for url in active}
        before = time.time() - age
        freed = 0
        for path in (self.root / "partial").glob("*"):
            name = path.name.split(".")[0]
            if name not in keep and _mtime(path) < before:
                freed += self._remove_partial(path, name)
        for path in self._locks.glob("*"):
            if _mtime(path) < before:
                _remove_lock(path)
        return freed

    def _remove_partial(self, path: Path, name: str) -> int:
        lock = FileLock.try_acquire(self._locks / f"url-{name}")
        if lock is None:
            return 0
        try:
            size = _size(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            return size
        finally:
            lock.release()


def _remove_lock(path: Path) -> None:
    lock = FileLock.try_acquire(path)
    if lock is not None:
        path.unlink(missing_ok=True)
        lock.release()


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(child.stat().st_size for child in path.rglob("*") if child.is_file())
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _mtime(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return time.time()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
