"""yt-dlp behind the egress guard, offline: its generic extractor on pages of our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from cloche.errors import (
    DownloadBrokenError,
    DownloadError,
    DownloadRefusedError,
    EgressRefusedError,
)
from cloche.settings.model import DownloadSettings
from cloche.tasks.download import DownloadState
from cloche.tasks.download.cache import Space
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Order, Stored
from cloche.tasks.download.ytdlp import YtDlp, knows
from cloche.tasks.egress import EgressGuard
from cloche.tasks.egress_proxy import EgressProxy
from cloche.testing import wait_until
from tests.integration.download.conftest import Stacks, kill_group
from tests.integration.download.server import File, FileServer

PAGE = b"<html><title>My film</title><body><video src='%s'></video></body></html>"


def _page(server: FileServer, target: bytes) -> str:
    return server.add("/page.html", File(PAGE % target, content_type="text/html"))


def _fetch(
    url: str, partial: Path, *, max_size: int = 10**9, checksum: str | None = None
) -> Stored:
    guard = EgressGuard(["127.0.0.1"], setting="s")
    backend = YtDlp(DownloadSettings(resumes=0), guard, Space(partial.parent, reserve=0))
    order = Order(url, checksum, max_size, None, "yt-dlp")
    stored = asyncio.run(backend.fetch(order, partial, Progress(), None))
    assert stored is not None
    return stored


def test_the_medium_of_a_page_is_fetched(server: FileServer, tmp_path: Path, noise: bytes) -> None:
    film = File(noise[:500_000], content_type="video/mp4")
    server.add("/film.mp4", film)
    stored = _fetch(_page(server, b"/film.mp4"), tmp_path / "p", checksum=f"sha256:{film.sha256}")
    assert (stored.sha256, stored.size) == (film.sha256, 500_000)
    assert stored.content_type == "video/mp4"
    assert stored.filename.endswith(".mp4")


def test_a_page_that_leads_to_a_forbidden_address_is_refused(
    server: FileServer, tmp_path: Path
) -> None:
    with pytest.raises(EgressRefusedError, match=r"169\.254\.169\.254"):
        _fetch(_page(server, b"http://169.254.169.254/film.mp4"), tmp_path / "p")


class Trap:
    """A port that nobody may contact, and programs that nobody may start."""

    PROGRAMS = ("ffmpeg", "ffprobe", "mplayer", "mpv", "rtmpdump", "aria2c", "curl", "phantomjs")

    def __init__(self, directory: Path) -> None:
        self.started = directory / "started"
        self.programs = directory / "bin"
        self.programs.mkdir()
        for name in self.PROGRAMS:
            program = self.programs / name
            program.write_text(f"#!/bin/sh\necho {name} >>{self.started}\n")
            program.chmod(0o755)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]

    def sprung(self) -> list[str]:
        """The programs that were started, and whether somebody connected."""
        found = self.started.read_text().split() if self.started.exists() else []
        with contextlib.suppress(BlockingIOError):
            self._listener.accept()[0].close()
            found.append("a connection")
        return found

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    made = Trap(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    yield made
    made.close()


@pytest.mark.parametrize("scheme", ["ftp", "rtmp", "rtsp", "mms", "ws"])
def test_no_protocol_leads_around_the_proxy(
    server: FileServer, trap: Trap, tmp_path: Path, scheme: str
) -> None:
    target = f"{scheme}://127.0.0.1:{trap.port}/film.mp4"
    with pytest.raises(DownloadError):
        _fetch(_page(server, target.encode()), tmp_path / "p")
    assert trap.sprung() == []


def test_a_stream_that_would_need_ffmpeg_is_refused_and_ffmpeg_not_started(
    server: FileServer, trap: Trap, tmp_path: Path
) -> None:
    key = f"http://127.0.0.1:{trap.port}/key"
    stream = (
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n"
        f'#EXT-X-KEY:METHOD=SAMPLE-AES,URI="{key}"\n#EXTINF:10,\nsegment.ts\n#EXT-X-ENDLIST\n'
    )
    kind = "application/vnd.apple.mpegurl"
    url = server.add("/film.m3u8", File(stream.encode(), content_type=kind))
    with pytest.raises(DownloadRefusedError, match="yt-dlp cannot get this"):
        _fetch(url, tmp_path / "p")
    assert trap.sprung() == []


def test_a_medium_over_the_cap_is_refused(server: FileServer, tmp_path: Path, noise: bytes) -> None:
    server.add("/film.mp4", File(noise, content_type="video/mp4"))
    with pytest.raises(DownloadRefusedError, match="size limit"):
        _fetch(_page(server, b"/film.mp4"), tmp_path / "p", max_size=100_000)


def test_a_page_without_media_fails_with_yt_dlps_reason(server: FileServer, tmp_path: Path) -> None:
    url = server.add("/empty.html", File(b"<html><p>no film</p></html>", content_type="text/html"))
    with pytest.raises(DownloadError, match="yt-dlp") as caught:
        _fetch(url, tmp_path / "p")
    assert not isinstance(caught.value, DownloadBrokenError)
    assert "ERROR" in caught.value.why


def test_only_sites_with_an_extractor_of_their_own_are_known() -> None:
    assert knows("https://www.youtube.com/watch?v=BaW_jenozKc")
    assert not knows("https://example.org/file.zip")


def test_auto_takes_a_plain_file_as_a_plain_file(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    stack, file = stacks({"backend": "auto"}), File(noise, drops=[1_000_000])
    with stack.worker():
        done = stack.over(stack.downloads.request(server.add("/data.bin", file)).id)
    assert (done.state, done.sha256, done.backend) == (DownloadState.DONE, file.sha256, "auto")
    assert done.filename == "data.bin"
    # Ours and nobody else's: one request, resumed by range, asking for no compression.
    assert [request.get("range") for request in file.requests] == [None, "bytes=1000000-"]
    assert {request["accept-encoding"] for request in file.requests} == {"identity"}


def test_nothing_of_yt_dlp_outlives_its_worker(
    stacks: Stacks, server: FileServer, noise: bytes
) -> None:
    """Cancelled, it is gone; its worker killed, it is gone too."""
    stack = stacks()
    film = File(noise, content_type="video/mp4", piece=65536, pause=0.05)
    server.add("/film.mp4", film)
    url = _page(server, b"/film.mp4")
    with stack.worker() as worker:
        id = stack.downloads.request(url, backend="yt-dlp").id
        stack.until_received(id, 200_000)
        first = _children(worker)
        stack.downloads.cancel(id)
        stack.until(id, DownloadState.CANCELLED)
        wait_until(lambda: not any(map(psutil.pid_exists, first)), "yt-dlp's end", 10)
        stack.downloads.remove(id)
        assert not list(stack.partial.glob("*"))
        id = stack.downloads.request(url, backend="yt-dlp").id
        stack.until_received(id, 200_000)
        second = _children(worker)
        kill_group(worker.pid)
        wait_until(lambda: not any(map(_alive, second)), "yt-dlp's end", 10)
    assert first
    assert second


def _children(worker: psutil.Process) -> list[int]:
    """The yt-dlp processes, which lead groups of their own."""
    return [
        child.pid
        for child in worker.children(recursive=True)
        if any("ytdlp_child" in word for word in child.cmdline())
    ]


def _alive(pid: int) -> bool:
    """Whether it runs; an orphan that ended may wait for its new parent as a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_proxy_forwards_what_the_guard_allows(server: FileServer) -> None:
    url = server.add("/x", File(b"through"))

    async def run() -> tuple[bytes, int]:
        async with EgressProxy(EgressGuard(["127.0.0.1"], setting="s"), connect_timeout=5) as proxy:
            async with httpx2.AsyncClient(proxy=proxy.url, trust_env=False) as client:
                allowed = await client.get(url)
                refused = await client.get("http://127.0.0.2/")
            assert isinstance(proxy.refused, EgressRefusedError)
            return allowed.content, refused.status_code

    assert asyncio.run(run()) == (b"through", 403)


def test_the_proxy_tunnels_and_refuses_tunnels(server: FileServer) -> None:
    server.add("/x", File(b"tunnelled"))

    async def ask(proxy: EgressProxy, target: str) -> bytes:
        host, port = proxy.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " in head.split(b"\r\n")[0]:
            writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        rest = await reader.read()
        writer.close()
        return head + rest

    async def run() -> list[bytes]:
        guard = EgressGuard(["127.0.0.1"], setting="s")
        async with EgressProxy(guard, connect_timeout=5) as proxy:
            targets = (f"127.0.0.1:{server.port}", "169.254.169.254:80", "not a target")
            return [await ask(proxy, target) for target in targets]

    tunnelled, refused, nonsense = asyncio.run(run())
    assert tunnelled.endswith(b"tunnelled")
    assert refused.startswith(b"HTTP/1.1 403")
    assert nonsense.startswith(b"HTTP/1.1 4")


def test_progress_rates_are_measured_over_the_last_seconds() -> None:
    progress = Progress()
    assert progress.rate() == 0
    progress.received = 1000
    time.sleep(0.05)
    assert 0 < progress.rate() < 1000 / 0.05
    progress.received = 10  # started over
    assert progress.rate() == 0
