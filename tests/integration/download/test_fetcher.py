"""The fetcher against a real server that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import shutil
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from cloche.backoff import Backoff
from cloche.errors import (
    DownloadBrokenError,
    DownloadRefusedError,
    EgressRefusedError,
)
from cloche.settings.model import DownloadSettings
from cloche.tasks.download.cache import Space
from cloche.tasks.download.fetcher import Fetcher
from cloche.tasks.download.part import Checksum, Part, PartMeta
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Order, Stored
from cloche.tasks.egress import EgressGuard
from tests.integration.download.server import File, FileServer, RawServer

LOCAL = ("127.0.0.0/8",)


class Bench:
    """Fetches with quick back-off into one part."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "part"
        self.progress = Progress()
        self.seen: list[int] = []

    def fetch(
        self,
        url: str,
        *,
        checksum: str | None = None,
        max_size: int = 10**9,
        known: Stored | None = None,
        allow: tuple[str, ...] = LOCAL,
        **settings: Any,
    ) -> Stored | None:
        self.progress = Progress()
        expected = Checksum.parse(checksum) if checksum else None
        fetcher = Fetcher(
            DownloadSettings(allow_networks=allow, **settings),
            EgressGuard(allow, setting="download.allow_networks"),
            Backoff(first=0.01, limit=0.02),
        )
        order = Order(url, checksum, max_size, None, "http")
        return asyncio.run(fetcher.fetch(order, Part(self.path, expected), self.progress, known))

    def file(self, url: str, **options: Any) -> Stored:
        stored = self.fetch(url, **options)
        assert stored is not None
        assert hashlib.sha256(self.path.read_bytes()).hexdigest() == stored.sha256
        return stored


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_file_arrives_with_its_hash_name_and_type(bench: Bench, server: FileServer) -> None:
    file = File(
        b"a" * 300_000, headers={"Content-Disposition": "attachment; filename*=utf-8''r%C3%A9.txt"}
    )
    stored = bench.file(server.add("/x", file))
    assert stored == Stored(
        file.sha256, 300_000, "ré.txt", "application/octet-stream", '"v1"', None
    )
    assert file.requests[0]["accept-encoding"] == "identity"
    assert file.requests[0]["host"] == f"127.0.0.1:{server.port}"


def test_a_transfer_that_breaks_twice_is_continued_where_it_broke(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, drops=[1_000_000, 2_000_000])
    stored = bench.file(server.add("/x", file))
    assert stored.sha256 == file.sha256
    assert bench.progress.restarts == 2
    ranges = [request.get("range") for request in file.requests]
    assert ranges == [None, "bytes=1000000-", "bytes=3000000-"]
    assert file.requests[1]["if-range"] == '"v1"'


def test_a_part_of_an_earlier_process_is_hashed_and_continued(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, drops=[3_000_000])
    url = server.add("/x", file)
    with pytest.raises(DownloadBrokenError):
        bench.fetch(url, resumes=0)
    assert bench.file(url, checksum=f"sha512:{hashlib.sha512(noise).hexdigest()}").size == len(
        noise
    )
    assert file.requests[-1]["range"] == "bytes=3000000-"


def test_a_server_without_ranges_is_asked_from_the_start(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, ranges=False, drops=[1_000_000])
    assert bench.file(server.add("/x", file)).sha256 == file.sha256


def test_a_file_that_changes_meanwhile_is_never_mixed(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, drops=[1_000_000])
    url = server.add("/x", file)
    with pytest.raises(DownloadBrokenError):
        bench.fetch(url, resumes=0)
    file.body, file.etag = noise[::-1], '"v2"'
    assert bench.file(url).sha256 == file.sha256


def test_an_etag_that_changes_in_a_206_starts_over(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    bench.path.write_bytes(b"old" * 1000)
    meta = {"etag": '"v1"', "last_modified": None, "total": len(noise)}
    bench.path.with_name("part.json").write_text(json.dumps(meta))
    # A server that ignores the If-Range it was sent and continues whatever it has now.
    file = File(noise, etag='"v1"', headers={"ETag": '"v2"'})
    assert bench.file(server.add("/x", file)).sha256 == file.sha256
    assert [request.get("range") for request in file.requests] == ["bytes=3000-", None]


@pytest.mark.parametrize(
    "wrong", ["bytes 0-99/8388608", "bytes 1000000-8388607/99", "nonsense", "bytes */8388608"]
)
def test_a_wrong_content_range_is_not_believed(
    bench: Bench, server: FileServer, noise: bytes, wrong: str
) -> None:
    file = File(noise, drops=[1_000_000], content_range=wrong)
    assert bench.file(server.add("/x", file)).sha256 == file.sha256


def test_a_part_that_is_already_complete_needs_no_byte(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise)
    url = server.add("/x", file)
    bench.file(url)
    assert bench.file(url).sha256 == file.sha256
    assert file.requests[-1]["range"] == f"bytes={len(noise)}-"


def test_a_part_longer_than_the_file_starts_over(bench: Bench, server: FileServer) -> None:
    file = File(b"x" * 1000)
    url = server.add("/x", file)
    bench.file(url)
    file.body = b"y" * 500
    assert bench.file(url).sha256 == file.sha256


@pytest.mark.parametrize("checksum", [False, True])
def test_without_a_validator_only_a_checksum_lets_a_part_be_continued(
    bench: Bench, server: FileServer, noise: bytes, checksum: bool
) -> None:
    file = File(noise, etag=None, drops=[1_000_000])
    url = server.add("/x", file)
    expected = f"sha256:{file.sha256}" if checksum else None
    assert bench.file(url, checksum=expected).sha256 == file.sha256
    asked = [request.get("range") for request in file.requests]
    assert asked == [None, "bytes=1000000-" if checksum else None]


def _head(status: int, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} X", *headers, "", "")).encode()


_CHUNKED = "Transfer-Encoding: chunked"
_OLD, _NEW = bytes(range(256)) * 4000, bytes(range(255, -1, -1)) * 4000
_SIZE, _CUT = len(_OLD), 600_000
_DAY_1, _DAY_2 = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    ("first", "second", "total"),
    [
        (['ETag: "1"'], ['ETag: "2"'], _SIZE),
        (['ETag: "1"'], ['ETag: W/"1"'], _SIZE),
        (['ETag: "1"'], [], _SIZE),
        (['ETag: W/"1"'], ['ETag: W/"1"'], _SIZE),
        ([f"Last-Modified: {_DAY_1}"], [f"Last-Modified: {_DAY_2}"], _SIZE),
        ([f"Last-Modified: {_DAY_1}"], [], _SIZE),
        # Written in the second it was sent: it may have changed once more in that second.
        ([f"Last-Modified: {_DAY_1}", f"Date: {_DAY_1}"], [f"Last-Modified: {_DAY_1}"], _SIZE),
        (['ETag: W/"1"', f"Last-Modified: {_DAY_1}"], ['ETag: W/"2"'], _SIZE),
        (['ETag: "1"'], ['ETag: "1"'], _SIZE + 1),
        (['ETag: "1"'], ['ETag: "1"'], None),
        ([], [], _SIZE),
    ],
)
def test_a_reply_that_may_be_of_another_version_is_never_appended(
    bench: Bench, first: list[str], second: list[str], total: int | None
) -> None:
    def answer(number: int, start: int | None) -> bytes:
        if number == 1:
            # A length that is not known: only the 206 tells one.
            length = () if total is None else (f"Content-Length: {_SIZE}",)
            chunked = (*first, "Transfer-Encoding: chunked")
            if length:
                return _head(200, *first, *length) + _OLD[:_CUT]
            return _head(200, *chunked) + b"%x\r\n" % _CUT + _OLD[:_CUT] + b"\r\n"
        if start is None:
            return _head(200, *second, f"Content-Length: {_SIZE}") + _NEW
        rest = f"bytes {start}-{_SIZE - 1}/{total or '*'}"
        head = _head(206, *second, f"Content-Range: {rest}", f"Content-Length: {_SIZE - start}")
        return head + _NEW[start:]

    with RawServer(answer) as raw:
        assert bench.file(raw.url).sha256 == hashlib.sha256(_NEW).hexdigest()


@pytest.mark.parametrize(
    ("sized", "same"), [(True, ['ETag: "1"']), (False, ['ETag: "1"']), (False, [])]
)
def test_a_416_completes_a_part_only_of_the_same_file(
    bench: Bench, sized: bool, same: list[str]
) -> None:
    bench.path.write_bytes(_OLD)
    meta = {"etag": '"1"', "total": _SIZE if sized else None}
    bench.path.with_name("part.json").write_text(json.dumps(meta))

    def answer(number: int, start: int | None) -> bytes:
        if start is None:
            return _head(200, f"Content-Length: {_SIZE}") + _NEW
        return _head(416, *same, f"Content-Range: bytes */{_SIZE}", "Content-Length: 0")

    with RawServer(answer) as raw:
        wanted = _OLD if sized or same else _NEW
        assert bench.file(raw.url).sha256 == hashlib.sha256(wanted).hexdigest()


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


_TEXT = b"some text " * 30_000
_TWO = gzip.compress(_TEXT[:100_000]) + gzip.compress(_TEXT[100_000:])


@pytest.mark.parametrize(
    ("coding", "body", "wanted"),
    [
        ("gzip", _TWO, _TEXT),
        ("gzip", _TWO + bytes(512), _TEXT),
        ("gzip", gzip.compress(b"") + gzip.compress(_TEXT), _TEXT),
        ("gzip, identity", gzip.compress(_TEXT), _TEXT),
        ("gzip, gzip", gzip.compress(_TWO), _TEXT),
        ("deflate", zlib.compress(_TEXT), _TEXT),
        ("deflate", _raw_deflate(_TEXT), _TEXT),
        ("deflate", _raw_deflate(b""), b""),
        ("gzip", b"", b""),
        ("gzip", _TWO[:-5], None),
        ("gzip", _TWO + b"\x1f", None),
        ("gzip", _TWO + b"\x1f\x8b\x08", None),
        ("gzip", _TWO + b"something else", None),
        ("gzip, gzip", gzip.compress(_TWO[:-5]), None),
        ("deflate", _raw_deflate(_TEXT)[:-3], None),
        ("gzip", _TEXT, None),
        ("br", _TEXT, None),
        ("identity", _TEXT, _TEXT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("framing", ["length", "chunked, in bytes"])
def test_every_encoding_gives_the_whole_file_or_none(
    bench: Bench, coding: str, body: bytes, wanted: bytes | None, framing: str
) -> None:
    head = _head(200, f"Content-Encoding: {coding}", f"Content-Length: {len(body)}")
    reply = head + body
    if framing != "length":
        head = _head(200, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
        pieces = [body[at : at + 1] for at in range(min(len(body), 3))] + [body[3:]]
        chunks = (b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
        reply = head + b"".join(chunks) + b"0\r\n\r\n"
    with RawServer(lambda *_: reply) as raw:
        if wanted is None:
            with pytest.raises((DownloadBrokenError, DownloadRefusedError)):
                bench.fetch(raw.url, resumes=0)
        else:
            assert bench.file(raw.url).sha256 == hashlib.sha256(wanted).hexdigest()


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (_head(200, "Content-Length: 3", _CHUNKED) + b"5\r\nhello\r\n0\r\n\r\n", 5),
        (_head(200, _CHUNKED) + b"5\r\nhello\r\n", None),
        (_head(200, _CHUNKED) + b"5\r\nhel", None),
        (_head(200, "Content-Length: 9") + b"hello", None),
        (_head(200) + b"hello", 5),
        (_head(200, "Content-Encoding: gzip"), None),
    ],
    ids=range(6),
)
def test_an_early_end_is_seen_in_every_framing_that_can_tell_one(
    bench: Bench, reply: bytes, wanted: int | None
) -> None:
    with RawServer(lambda *_: reply) as raw:
        if wanted is None:
            with pytest.raises(DownloadBrokenError):
                bench.fetch(raw.url, resumes=0)
        else:
            assert bench.file(raw.url).size == wanted


def test_resuming_ends_when_no_byte_comes_any_more(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, drops=[1_000_000, 0, 0, 0, 0])
    with pytest.raises(DownloadBrokenError):
        bench.fetch(server.add("/x", file), resumes=2)
    assert len(file.requests) == 3
    assert bench.path.stat().st_size == 1_000_000


def test_every_new_byte_earns_further_resumes(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, drops=[500_000] * 10)
    assert bench.file(server.add("/x", file), resumes=1).sha256 == file.sha256
    assert bench.progress.restarts == 10


def test_a_content_length_that_promises_too_much_is_a_broken_transfer(
    bench: Bench, server: FileServer
) -> None:
    file = File(b"x" * 1000, declared=2000, ranges=False)
    with pytest.raises(DownloadBrokenError):
        bench.fetch(server.add("/x", file), resumes=2)


def test_a_declared_size_over_the_cap_is_refused_before_the_body(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    with pytest.raises(DownloadRefusedError, match="too large"):
        bench.fetch(server.add("/x", File(noise)), max_size=1000)
    assert not bench.path.exists()
    assert bench.progress.received == 0


def test_an_endless_body_is_cut_at_the_cap(bench: Bench, server: FileServer) -> None:
    with pytest.raises(DownloadRefusedError, match="too large"):
        bench.fetch(server.add("/x", File(endless=True)), max_size=5_000_000)
    assert not bench.path.exists()


def test_compression_nobody_asked_for_is_undone(bench: Bench, server: FileServer) -> None:
    file = File(b"text " * 100_000, compressed=True, content_type="text/plain")
    assert bench.file(server.add("/x", file)).sha256 == file.sha256


def test_a_compressed_transfer_that_breaks_starts_over(
    bench: Bench, server: FileServer, noise: bytes
) -> None:
    file = File(noise, compressed=True, content_type="text/plain", drops=[1_000_000])
    assert bench.file(server.add("/x", file)).sha256 == file.sha256
    assert "range" not in file.requests[1]


def test_a_decompression_bomb_meets_the_cap(bench: Bench, server: FileServer) -> None:
    file = File(bytes(50_000_000), compressed=True, content_type="text/plain")
    with pytest.raises(DownloadRefusedError, match="too large"):
        bench.fetch(server.add("/x", file), max_size=1_000_000)


def test_the_right_checksum_passes_and_a_wrong_one_discards(
    bench: Bench, server: FileServer
) -> None:
    url = server.add("/x", File(b"data"))
    md5 = hashlib.md5(b"data", usedforsecurity=False).hexdigest()
    bench.file(url, checksum=f"md5:{md5}")
    with pytest.raises(DownloadRefusedError, match="wrong checksum"):
        bench.fetch(url, checksum=f"sha256:{'0' * 64}")
    assert not bench.path.exists()


def test_a_404_is_refused_at_once(bench: Bench, server: FileServer) -> None:
    file = File(refusals=[(404, {})])
    with pytest.raises(DownloadRefusedError, match="404"):
        bench.fetch(server.add("/x", file))
    assert len(file.requests) == 1


def test_a_short_retry_after_is_waited_for(bench: Bench, server: FileServer) -> None:
    file = File(refusals=[(503, {"Retry-After": "1"})])
    begun = time.monotonic()
    assert bench.file(server.add("/x", file)).sha256 == file.sha256
    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_long_retry_after_reaches_the_task(bench: Bench, server: FileServer, form: str) -> None:
    value = "120" if form == "seconds" else formatdate(time.time() + 120, usegmt=True)
    with pytest.raises(DownloadBrokenError) as caught:
        bench.fetch(server.add("/x", File(refusals=[(429, {"Retry-After": value})])))
    assert caught.value.retry_after == pytest.approx(120, abs=3)


def test_a_silent_server_is_a_broken_transfer(bench: Bench, server: FileServer) -> None:
    file = File(b"x" * 1000, piece=10, pause=60)
    with pytest.raises(DownloadBrokenError):
        bench.fetch(server.add("/x", file), read_timeout=0.2, resumes=0)
    assert bench.path.stat().st_size == 10


def test_an_unchanged_file_is_not_sent_again(bench: Bench, server: FileServer) -> None:
    file = File()
    url = server.add("/x", file)
    known = bench.file(url)
    bench.path.with_name("part.json").unlink()
    assert bench.fetch(url, known=known) is None
    file.body, file.etag = b"new", '"v2"'
    assert bench.file(url, known=known).sha256 == file.sha256


def test_redirects_are_followed_and_name_the_file(bench: Bench, server: FileServer) -> None:
    server.add("/files/report.pdf", File(b"pdf"))
    url = server.add("/go", File(redirect="/files/report.pdf"))
    assert bench.file(url).filename == "report.pdf"


def test_redirects_are_counted(bench: Bench, server: FileServer) -> None:
    file = File(redirect="/x")
    with pytest.raises(DownloadRefusedError, match="redirects too often"):
        bench.fetch(server.add("/x", file), max_redirects=3)
    assert len(file.requests) == 4


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_INFO",
        "http://user:secret@127.0.0.1/",
    ],
)
def test_a_redirect_to_a_forbidden_place_is_refused(
    bench: Bench, server: FileServer, target: str
) -> None:
    url = server.add("/x", File(redirect=target))
    with pytest.raises(EgressRefusedError):
        bench.fetch(url)


def test_loopback_is_refused_unless_allowed(bench: Bench, server: FileServer) -> None:
    file = File()
    url = server.add("/x", file)
    with pytest.raises(EgressRefusedError, match="is loopback"):
        bench.fetch(url, allow=())
    with pytest.raises(EgressRefusedError):
        bench.fetch(url.replace("127.0.0.1", "localhost"), allow=())
    assert not file.requests


def test_an_unknown_host_is_refused_without_resuming(bench: Bench) -> None:
    with pytest.raises(DownloadRefusedError, match="no host"):
        bench.fetch("http://host.invalid/", resumes=100)


def test_a_full_disk_is_reported_before_the_transfer(bench: Bench, server: FileServer) -> None:
    file = File(b"x", declared=10**15)
    with pytest.raises(DownloadRefusedError, match="no room"):
        bench.fetch(server.add("/x", file), max_size=10**16)
    assert not bench.path.exists()


def test_a_body_of_unknown_length_leaves_the_reserve_free_and_gives_back_what_it_took(
    bench: Bench, server: FileServer
) -> None:
    free = shutil.disk_usage(bench.path.parent).free
    with pytest.raises(DownloadRefusedError, match="no room"):
        bench.fetch(server.add("/x", File(endless=True)), reserve=free - 20 * 1024**2)
    assert not list(bench.path.parent.iterdir())


def test_all_downloads_together_stay_within_their_quota(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "one").write_bytes(bytes(600))
    space = Space(tmp_path, reserve=0, quota=1000)
    space.check(400)
    with pytest.raises(DownloadRefusedError, match=r"download\.quota"):
        space.check(401)


Names = Callable[[str, int], Awaitable[list[str]]]


def _resolver(*answers: list[str]) -> tuple[Names, list[str]]:
    left, asked = list(answers), []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve, asked


def _fetch_by_name(
    server: FileServer, directory: Path, resolver: Names, file: File
) -> Stored | None:
    guard = EgressGuard(["127.0.0.0/30"], setting="s", resolver=resolver)
    server.add("/x", file)
    order = Order(f"http://files.example:{server.port}/x", None, 10**9, None, "http")
    fetcher = Fetcher(DownloadSettings(resumes=1), guard, Backoff(first=0.01))
    return asyncio.run(fetcher.fetch(order, Part(directory / "p"), Progress()))


def test_the_connection_goes_to_the_address_that_was_checked(
    server: FileServer, tmp_path: Path
) -> None:
    """Rebinding: the second answer is forbidden, and is never asked for."""
    resolver, asked = _resolver(["127.0.0.1"], ["10.0.0.1"])
    file = File(b"pinned")
    stored = _fetch_by_name(server, tmp_path, resolver, file)
    assert stored is not None
    assert stored.sha256 == file.sha256
    assert asked == ["files.example"]
    assert file.requests[0]["host"] == f"files.example:{server.port}"


def test_each_resumption_checks_the_name_anew(
    server: FileServer, tmp_path: Path, noise: bytes
) -> None:
    resolver, asked = _resolver(["127.0.0.1"], ["10.0.0.1"])
    with pytest.raises(EgressRefusedError, match=r"10\.0\.0\.1"):
        _fetch_by_name(server, tmp_path, resolver, File(noise, drops=[1000]))
    assert len(asked) == 2


def test_one_forbidden_address_among_several_is_enough(server: FileServer, tmp_path: Path) -> None:
    resolver, _ = _resolver(["127.0.0.1", "192.168.0.1"])
    file = File()
    with pytest.raises(EgressRefusedError, match=r"192\.168\.0\.1"):
        _fetch_by_name(server, tmp_path, resolver, file)
    assert not file.requests


def test_the_next_address_is_tried_when_one_does_not_answer(
    server: FileServer, tmp_path: Path
) -> None:
    resolver, _ = _resolver(["127.0.0.2", "127.0.0.1"])  # only the second has the listener
    assert _fetch_by_name(server, tmp_path, resolver, File(b"second")) is not None


def test_a_resolver_that_has_no_answer_now_is_a_broken_transfer(tmp_path: Path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    guard = EgressGuard(setting="s", resolver=resolve)
    fetcher = Fetcher(DownloadSettings(resumes=0), guard, Backoff(first=0.01))
    order = Order("http://files.example/", None, 1, None, "http")
    with pytest.raises(DownloadBrokenError):
        asyncio.run(fetcher.fetch(order, Part(tmp_path / "p"), Progress()))


def test_a_torn_sidecar_means_starting_over(bench: Bench, server: FileServer) -> None:
    bench.path.write_bytes(b"old")
    bench.path.with_name("part.json").write_text('{"etag": "v')
    file = File(b"new content")
    assert bench.file(server.add("/x", file)).sha256 == file.sha256


def test_part_meta_never_sends_a_weak_etag_as_if_range() -> None:
    assert PartMeta(etag='W/"1"', last_modified="date").validator == "date"
    assert PartMeta(etag='W/"1"').validator is None
