"""The store of downloaded files and its locks."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from cloche.errors import DownloadRefusedError
from cloche.file_lock import FileLock
from cloche.tasks.download.cache import Cache
from cloche.tasks.download.part import Checksum


def _object(cache: Cache, content: bytes, url: str) -> Path:
    partial = cache.partial_path(url)
    partial.write_bytes(content)
    return cache.put(partial, hashlib.sha256(content).hexdigest())


def test_equal_content_is_one_object(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    one, two = _object(cache, b"same", "http://a/"), _object(cache, b"same", "http://b/")
    assert one == two
    assert one.read_bytes() == b"same"
    assert not list((cache.root / "partial").iterdir())


def test_a_host_has_so_many_slots_and_each_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    slots = [cache.host_slot("h", 2), cache.host_slot("h", 2)]
    assert all(slots)
    assert cache.host_slot("h", 2) is None
    assert cache.host_slot("other", 2) is not None
    assert slots[0] is not None
    slots[0].release()
    assert cache.host_slot("h", 2) is not None


def _hold(path: Path, held: multiprocessing.synchronize.Event) -> None:
    lock = FileLock.try_acquire(path)
    assert lock is not None
    held.set()
    time.sleep(60)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path, context = tmp_path / "lock", multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(path, held))
    process.start()
    try:
        assert held.wait(30)
        assert FileLock.try_acquire(path) is None
    finally:
        process.kill()
        process.join()
    assert FileLock.try_acquire(path) is not None


def test_sweeping_removes_old_parts_that_nobody_waits_for(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    urls = {name: f"http://{name}/" for name in ("old", "young", "wanted", "busy")}
    lock = cache.url_lock(urls["busy"])
    for name, url in urls.items():
        path = cache.partial_path(url)
        path.write_bytes(b"12345")
        if name != "young":
            os.utime(path, (1, 1))
    media = cache.partial_path(urls["old"]).with_suffix(".d")
    media.mkdir()
    (media / "media.part").write_bytes(b"123")
    os.utime(media, (1, 1))
    assert cache.sweep([urls["wanted"]]) == 8
    left = {path.name for path in (cache.root / "partial").iterdir()}
    assert left == {cache.partial_path(urls[name]).name for name in ("young", "wanted", "busy")}
    assert lock is not None
    lock.release()


def test_a_lock_file_that_was_swept_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock.try_acquire(path)
    assert first is not None
    path.unlink()
    second = FileLock.try_acquire(path)
    assert second is not None
    assert FileLock.try_acquire(path) is None


@pytest.mark.parametrize("text", ["sha256:12", "crc32:12345678", "zz" * 32, "md5", ":", ""])
def test_what_is_no_checksum_is_refused(text: str) -> None:
    with pytest.raises(DownloadRefusedError, match="is not a checksum"):
        Checksum.parse(text)


def test_checksums_are_read_in_their_usual_writings() -> None:
    assert str(Checksum.parse("SHA-256:" + "AB" * 32)) == "sha256:" + "ab" * 32
    assert str(Checksum.parse("0" * 64)) == "sha256:" + "0" * 64
    assert Checksum.parse("md5:" + "0" * 32).algorithm == "md5"
