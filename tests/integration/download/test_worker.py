"""Downloads through a real worker on a real broker."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from celery.result import AsyncResult

from cloche.errors import BrokerError, DownloadError, DownloadRefusedError
from cloche.tasks.download import DownloadState
from cloche.testing import wait_until
from tests.integration.download.conftest import Stack, Stacks, kill_group
from tests.integration.download.server import File, FileServer

#: Bytes of the file whose transfer is measured; 200 * 1024**2 is the figure of the docs.
MEASURED = int(os.environ.get("CLOCHE_TEST_DOWNLOAD", 40 * 1024**2))


def slow(body: bytes, rate: float = 4e6) -> File:
    """A file that comes at about that many bytes per second."""
    return File(body, piece=65536, pause=65536 / rate)


def test_a_url_becomes_a_file_and_then_a_cache_hit(stacks: Stacks, server: FileServer) -> None:
    stack, file = stacks(), File(b"content" * 1000, content_type="text/plain")
    url = server.add("/dir/name.txt", file)
    with stack.worker():
        queued = stack.downloads.request(f"{url}#fragment", checksum=f"sha256:{file.sha256}")
        done = stack.over(queued.id)
        assert done.state is DownloadState.DONE, done.error
        assert (done.sha256, done.size, done.received) == (file.sha256, 7000, 7000)
        assert (done.filename, done.content_type) == ("name.txt", "text/plain")
        assert not done.cached
        assert stack.downloads.path(done).read_bytes() == file.body
        assert AsyncResult(done.task_id, app=stack.app).get(timeout=10) == {
            "id": done.id,
            "sha256": file.sha256,
            "size": 7000,
            "filename": "name.txt",
            "content_type": "text/plain",
            "cached": False,
        }
    hit = stack.downloads.request(url)  # nobody runs any more, and nobody is needed
    assert (hit.state, hit.cached, hit.sha256) == (DownloadState.DONE, True, file.sha256)
    assert hit.id != done.id
    assert len(file.requests) == 1
    assert [download.id for download in stack.downloads.list()] == [hit.id, done.id]
    assert stack.downloads.list(before=hit.created) == [done]


def test_equal_requests_join_and_equal_content_is_kept_once(
    stacks: Stacks, server: FileServer
) -> None:
    stack, body = stacks(), b"same" * 1000
    one, two = server.add("/1", File(body)), server.add("/2", File(body))
    first = stack.downloads.request(one)
    assert stack.downloads.request(one).id == first.id
    second = stack.downloads.request(two)
    assert second.id != first.id
    with stack.worker():
        assert stack.over(first.id).sha256 == stack.over(second.id).sha256
    objects = stack.settings.run_dir / "downloads" / "objects"
    assert len([path for path in objects.rglob("*") if path.is_file()]) == 1
    path = stack.downloads.path(stack.now(first.id))
    stack.downloads.remove(first.id)
    assert path.exists()
    stack.downloads.remove(second.id)
    assert not path.exists()


def test_a_running_download_is_cancelled_within_a_second(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    stack, file = stacks(), slow(noise, 1e6)
    with stack.worker():
        id = stack.downloads.request(server.add("/x", file)).id
        stack.until_received(id, 100_000)
        with pytest.raises(DownloadRefusedError, match="active"):
            stack.downloads.remove(id)
        begun = time.monotonic()
        stack.downloads.cancel(id)
        cancelled = stack.until(id, DownloadState.CANCELLED)
        took = time.monotonic() - begun
        assert took < 5, took  # one second, and more for a busy machine
        wait_until(
            lambda: AsyncResult(cancelled.task_id, app=stack.app).state == "REVOKED", "REVOKED"
        )
        assert cancelled.received >= 100_000, "what came is kept"
        wait_until(lambda: file.open_now == 0, "the connection to end")
        file.released.set()
        stack.downloads.retry(id)  # a new task id: the old one stays revoked
        assert stack.over(id).sha256 == file.sha256
    assert file.requests[-1]["range"] > "bytes=1", "it goes on where it stopped"


def test_a_queued_download_is_cancelled_at_once(stacks: Stacks, server: FileServer) -> None:
    stack, file = stacks(), File()
    queued = stack.downloads.request(server.add("/x", file))
    assert stack.downloads.cancel(queued.id).state is DownloadState.CANCELLED
    with stack.worker():
        task = AsyncResult(queued.task_id, app=stack.app)
        wait_until(lambda: task.state == "REVOKED", "REVOKED")
    assert not file.requests


def test_a_refusing_server_is_asked_again_later(stacks: Stacks, server: FileServer) -> None:
    stack = stacks({"resumes": 0})
    file = File(refusals=[(500, {}), (500, {})])
    with stack.worker():
        id = stack.downloads.request(server.add("/x", file)).id
        assert "500" in (stack.until(id, DownloadState.RETRYING).error or "")
        done = stack.over(id)
    assert (done.state, done.attempts, done.error) == (DownloadState.DONE, 3, None)


def test_retries_end_and_say_why(stacks: Stacks, server: FileServer) -> None:
    stack = stacks({"resumes": 0})
    file = File(refusals=[(500, {})] * 3)
    with stack.worker():
        id = stack.downloads.request(server.add("/x", file)).id
        failed = stack.over(id)
        assert (failed.state, failed.attempts) == (DownloadState.FAILED, 3)
        assert "answered 500" in (failed.error or "")
        with pytest.raises(DownloadError, match="no file"):
            stack.downloads.path(failed)
        stack.downloads.retry(id)
        assert stack.over(id).state is DownloadState.DONE


def test_retry_after_holds_when_it_is_longer_than_the_delay(
    stacks: Stacks, server: FileServer
) -> None:
    stack = stacks({"resumes": 0}, task={"default_retry_delay": 0})
    file = File(refusals=[(429, {"Retry-After": "2"})])
    with stack.worker():
        id = stack.downloads.request(server.add("/x", file)).id
        stack.until(id, DownloadState.RETRYING)
        begun = time.time()
        done = stack.over(id)
    assert done.state is DownloadState.DONE
    assert (done.finished or 0) - begun > 1.5


def test_what_cannot_succeed_is_not_retried(stacks: Stacks, server: FileServer) -> None:
    stack = stacks()
    file = File(refusals=[(404, {})])
    with stack.worker():
        gone = stack.over(stack.downloads.request(server.add("/x", file)).id)
        redirect = server.add("/meta", File(redirect="http://169.254.169.254/latest"))
        refused = stack.over(stack.downloads.request(redirect).id)
    assert (gone.state, gone.attempts) == (DownloadState.FAILED, 1)
    assert "404" in (gone.error or "")
    assert (refused.state, refused.attempts) == (DownloadState.FAILED, 1)
    assert "169.254.169.254" in (refused.error or "")


def test_a_killed_worker_is_continued_by_the_next_one(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    """kill -9 of the worker with its pool; the broker redelivers after its timeout."""
    stack = stacks(visibility_timeout=2)
    file = slow(noise, 2e6)
    with stack.worker() as worker:
        id = stack.downloads.request(server.add("/x", file)).id
        stack.until_received(id, 3_000_000)
        kill_group(worker.pid)
    file.released.set()
    with stack.worker():
        done = stack.over(id)
    assert (done.state, done.sha256) == (DownloadState.DONE, file.sha256)
    assert done.attempts == 2
    start = int(file.requests[-1]["range"].removeprefix("bytes=").removesuffix("-"))
    assert start > 1_000_000


def test_a_killed_pool_process_is_replaced_and_the_download_continued(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    stack, file = stacks(), slow(noise, 2e6)
    with stack.worker(concurrency=1) as worker:
        id = stack.downloads.request(server.add("/x", file)).id
        stack.until_received(id, 2_000_000)
        [child] = worker.children()
        file.released.set()
        child.send_signal(signal.SIGKILL)
        done = stack.over(id)
    assert (done.state, done.sha256) == (DownloadState.DONE, file.sha256)


def test_a_second_delivery_of_a_running_download_does_no_harm(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    stack, file = stacks(), slow(noise, 4e6)
    with stack.worker():
        download = stack.downloads.request(server.add("/x", file))
        stack.until_received(download.id, 100_000)
        again = stack.app.tasks["cloche.download.fetch"].apply_async((download.id,))
        done = stack.over(download.id)
        assert again.get(timeout=10)["sha256"] == file.sha256
    assert (done.attempts, len(file.requests)) == (1, 1)


def test_a_host_is_asked_for_few_files_at_once(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    stack = stacks({"per_host": 1})
    file = slow(noise[:500_000], 1e6)
    urls = [server.add("/x", file) + f"?{number}" for number in range(4)]
    with stack.worker(concurrency=4):
        ids = [stack.downloads.request(url).id for url in urls]
        ended = [stack.over(id) for id in ids]
    assert {download.state for download in ended} == {DownloadState.DONE}
    assert {download.attempts for download in ended} == {1}
    assert file.most_open <= 2, "the next may open while the server still closes the last"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_soft_limit_ends_a_download_that_can_be_continued(
    stacks: Stacks, server: FileServer, noise: bytes, pool: str
) -> None:
    stack = stacks(task={"soft_time_limit": 2, "time_limit": 20})
    file = slow(noise, 1e6)
    url = server.add("/x", file)
    with stack.worker(pool=pool):
        failed = stack.over(stack.downloads.request(url).id)
        assert failed.state is DownloadState.FAILED
        assert "time limit was reached after 2 s" in (failed.error or "")
        assert "are kept" in (failed.error or "")
        file.released.set()
        assert stack.over(stack.downloads.request(url).id).sha256 == file.sha256
    assert file.requests[-1]["range"] > "bytes=1"


def test_a_stale_file_is_confirmed_instead_of_transferred(
    stacks: Stacks, server: FileServer
) -> None:
    stack, file = stacks({"fresh_for": 0}), File()
    url = server.add("/x", file)
    with stack.worker():
        first = stack.over(stack.downloads.request(url).id)
        second = stack.over(stack.downloads.request(url).id)
        assert (second.cached, second.sha256) == (True, first.sha256)
        assert file.requests[1]["if-none-match"] == '"v1"'
        file.body, file.etag = b"changed", '"v2"'
        third = stack.over(stack.downloads.request(url).id)
    assert (third.cached, third.sha256) == (False, file.sha256)


def test_a_download_that_cannot_be_queued_says_so(stacks: Stacks, server: FileServer) -> None:
    stack = stacks()
    down = Stack("redis://127.0.0.1:1/0", stack.directory, {"settings": stack.setup["settings"]})
    down.app.conf.task_publish_retry = False
    with pytest.raises(BrokerError, match="could not be queued"):
        down.downloads.request(server.add("/x", File()))
    [row] = stack.downloads.list()
    assert row.state is DownloadState.FAILED
    assert "could not be sent" in (row.error or "")
    down.app.close()


def test_a_task_waits_for_a_database_that_is_away(stacks: Stacks, server: FileServer) -> None:
    stack, file = stacks(), File()
    queued = stack.downloads.request(server.add("/x", file))
    database = stack.settings.run_dir / "cloche.db"
    away = database.rename(database.with_suffix(".away"))
    with stack.worker():
        task = AsyncResult(queued.task_id, app=stack.app)
        wait_until(lambda: task.state == "RETRY", "RETRY")
        away.replace(database)
        assert stack.over(queued.id).sha256 == file.sha256


def test_a_large_file_arrives_in_little_memory(stacks: Stacks, server: FileServer) -> None:
    """Two dropped connections; progress only grows; the pool process does not."""
    body = random.Random(1).randbytes(MEASURED)
    file = File(body, drops=[MEASURED // 3, MEASURED // 3], piece=262144, pause=0.004)
    stack = stacks()
    warm = server.add("/warm", File(b"warm"))
    with stack.worker(concurrency=1) as worker:
        stack.over(stack.downloads.request(warm).id)
        [child] = worker.children()
        before = child.memory_info().rss
        id = stack.downloads.request(server.add("/large", file)).id
        received, most = _watched(stack, id, child)
        done = stack.now(id)
    growth = most - before
    print(f"{MEASURED} bytes: RSS {before} + {growth}, {(done.finished or 0) - done.created:.2f} s")
    assert done.state is DownloadState.DONE, done.error
    assert (done.sha256, done.restarts) == (hashlib.sha256(body).hexdigest(), 2)
    assert received == sorted(received)
    assert len(set(received)) > 2
    assert growth < 50 * 1024**2
    assert _sha256(stack.downloads.path(done)) == done.sha256


def _watched(stack: Stack, id: str, child: psutil.Process) -> tuple[list[int], int]:
    """(every progress seen, largest RSS seen) until the download is over."""
    received, most = [], 0

    def over() -> bool:
        nonlocal most
        now = stack.now(id)
        received.append(now.received)
        most = max(most, child.memory_info().rss)
        return not now.state.active

    wait_until(over, "the large file", 120)
    return received, most


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
