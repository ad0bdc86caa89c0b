"""Downloaded files by content, unfinished ones by URL, and who may work on which."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloche.errors import DownloadRefusedError
from cloche.file_lock import FileLock
from cloche.tasks.download.table import key

#: Age in seconds from which an unfinished file nobody waits for is removed.
PARTIAL_AGE = 86400.0

#: Seconds for which the size of all files is believed; counting them costs a walk.
_FRESH = 1.0


class Cache:
    """``<run_dir>/downloads``, or ``directory`` where one is set: ``objects/ab/<sha256>``,
    ``partial/<url>``, ``locks/``.

    An object is complete as soon as it is there: it is made durable under another name and
    renamed. Two URLs with the same content share one.
    """

    def __init__(self, run_dir: Path, directory: Path | None = None) -> None:
        self.root = (directory or run_dir / "downloads").absolute()
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
        self.object_path(sha256).unlink(missing_ok=True)

    def content_lock(self, sha256: str) -> FileLock:
        """Held while an object and the rows that name it change together."""
        return FileLock.acquire(self._lock(f"content-{sha256}"))

    def url_lock(self, url: str) -> FileLock | None:
        """The right to download ``url``; None while somebody else does."""
        return FileLock.try_acquire(self._lock(f"url-{key(url)}"))

    def host_slot(self, host: str, slots: int) -> FileLock | None:
        """One of the ``slots`` of a host on this machine; None if all are taken."""
        name = key(host)
        for number in range(slots):
            slot = FileLock.try_acquire(self._lock(f"host-{name}-{number}"))
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
        lock = FileLock.try_acquire(self._lock(f"url-{name}"))
        if lock is None:
            return 0
        with lock:
            size = _size(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            return size

    def _lock(self, name: str) -> Path:
        self._locks.mkdir(parents=True, exist_ok=True)
        return self._locks / name


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


class Space:
    """Says no before a disk is full: ``reserve`` bytes of it stay free for the broker, the
    database and the spool, and the files below ``directory`` take at most ``quota`` bytes.

    For one transfer at a time. Raises `DownloadRefusedError`.
    """

    def __init__(self, directory: Path, *, reserve: int, quota: int | None = None) -> None:
        self._directory = directory
        self._reserve = reserve
        self._quota = quota
        self._used, self._counted_at = 0, -_FRESH

    def check(self, more: int) -> None:
        """Whether ``more`` bytes may still come."""
        if shutil.disk_usage(self._directory).free < more + self._reserve:
            raise no_room(
                self._directory,
                f"{more} more bytes are needed and {self._reserve} stay free "
                "(download.reserve), for the broker, the database and the logs.",
            )
        if self._quota is not None and self._total() + more > self._quota:
            raise no_room(
                self._directory,
                f"All downloads together may take {self._quota} bytes (download.quota).",
            )

    def _total(self) -> int:
        now = time.monotonic()
        if now - self._counted_at >= _FRESH:
            self._used, self._counted_at = size_of(self._directory), now
        return self._used


def size_of(directory: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile are none."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def no_room(place: Path, why: str) -> DownloadRefusedError:
    """The refusal of a file there is no space for."""
    return DownloadRefusedError(
        "The disk has no room for this file.",
        why=f"{why} ({place})",
        fix="Free some space (remove downloads), or set download.directory to another disk.",
    )


@contextmanager
def full_disk_told(place: Path) -> Iterator[None]:
    """A system call that fails for want of space, as the refusal of this download."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(place, str(error.strerror)) from error
