"""Downloads over TLS, from a server whose certificate a private authority signed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloche.backoff import Backoff
from cloche.errors import DownloadRefusedError, SettingsError
from cloche.settings.model import DownloadSettings
from cloche.tasks.download.cache import Space
from cloche.tasks.download.fetcher import Fetcher
from cloche.tasks.download.part import Part
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Order, Stored
from cloche.tasks.download.ytdlp import YtDlp
from cloche.tasks.egress import EgressGuard
from tests.integration.download.authority import Authority
from tests.integration.download.server import File, FileServer

HOST = "files.example.test"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> tuple[Path, Path]:
    return authority.certificate(HOST)


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[FileServer]:
    with FileServer(certificate) as running:
        yield running


class Names:
    """A resolver that knows every name as this machine, and which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return ["127.0.0.1"]


class Client:
    """Fetches into one part, trusting ``ca_file``."""

    def __init__(self, directory: Path, ca_file: Path | None) -> None:
        self.part = directory / "part"
        self.names = Names()
        self.settings = DownloadSettings(ca_file=ca_file, resumes=1)
        self.guard = EgressGuard(["127.0.0.1"], setting="s", resolver=self.names)

    def fetch(self, url: str, checksum: str | None = None) -> Stored:
        fetcher = Fetcher(self.settings, self.guard, Backoff(first=0.01))
        order = Order(url, checksum, 10**9, None, "http")
        stored = asyncio.run(fetcher.fetch(order, Part(self.part), Progress()))
        assert stored is not None
        return stored


@pytest.fixture
def client(tmp_path: Path, authority: Authority) -> Client:
    return Client(tmp_path, authority.file)


def _url(server: FileServer, file: File, *, scheme: str = "https", host: str = HOST) -> str:
    server.add("/x", file)
    return f"{scheme}://{host}:{server.port}/x"


def test_tls_names_and_verifies_the_host_of_the_url_not_the_pinned_address(
    client: Client, secure: FileServer
) -> None:
    file = File(b"secret" * 1000)
    assert client.fetch(_url(secure, file)).sha256 == file.sha256
    assert secure.names == [HOST]
    assert client.names.asked == [HOST]
    assert file.requests[0]["host"] == f"{HOST}:{secure.port}"


def test_a_broken_transfer_is_resumed_over_tls(
    client: Client, secure: FileServer, noise: bytes
) -> None:
    file = File(noise, drops=[1_000_000])
    assert client.fetch(_url(secure, file)).sha256 == file.sha256
    assert [request.get("range") for request in file.requests] == [None, "bytes=1000000-"]
    assert secure.names == [HOST, HOST]


def test_a_certificate_for_another_name_is_refused(client: Client, secure: FileServer) -> None:
    file = File()
    with pytest.raises(DownloadRefusedError, match="is for another name") as caught:
        client.fetch(_url(secure, file, host="other.example.test"))
    assert "certificate of other.example.test" in caught.value.what
    assert not file.requests


def test_the_address_alone_is_no_name(client: Client, secure: FileServer) -> None:
    with pytest.raises(DownloadRefusedError, match=r"certificate of 127\.0\.0\.1 is for another"):
        client.fetch(_url(secure, File(), host="127.0.0.1"))


def test_an_unknown_authority_is_refused_and_the_setting_named(
    tmp_path: Path, secure: FileServer
) -> None:
    stranger = Authority(tmp_path / "stranger", "Stranger")
    file = File()
    for ca_file in (None, stranger.file):
        with pytest.raises(DownloadRefusedError, match="not trusted") as caught:
            Client(tmp_path, ca_file).fetch(_url(secure, file))
        assert "download.ca_file" in caught.value.fix
    assert not file.requests
    assert len(secure.names) == 2  # asking again would not help, and is not done


def test_an_expired_certificate_is_refused(
    tmp_path: Path, authority: Authority, client: Client
) -> None:
    expired = pytest.raises(DownloadRefusedError, match="has expired")
    with FileServer(authority.certificate("old.example.test", days=-1)) as server, expired:
        client.fetch(_url(server, File(), host="old.example.test"))


def test_the_certificate_of_a_redirects_target_is_blamed_on_the_target(
    client: Client, secure: FileServer, server: FileServer
) -> None:
    target = _url(secure, File(), host="other.example.test")
    with pytest.raises(DownloadRefusedError, match=r"certificate of other\.example\.test"):
        client.fetch(server.add("/go", File(redirect=target)))


@pytest.mark.parametrize("content", [None, "this is no certificate"])
def test_an_unusable_file_of_authorities_is_a_matter_of_settings(
    tmp_path: Path, secure: FileServer, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"download\.ca_file"):
        Client(tmp_path, file).fetch(_url(secure, File()))


def test_https_never_leads_to_http(client: Client, secure: FileServer, server: FileServer) -> None:
    plain = File()
    target = _url(server, plain, scheme="http")
    with pytest.raises(DownloadRefusedError, match="from https to http"):
        client.fetch(_url(secure, File(redirect=target)))
    assert not plain.requests


def test_https_leads_to_http_where_a_checksum_proves_the_file(
    client: Client, secure: FileServer, server: FileServer
) -> None:
    plain = File(b"proven")
    target = _url(server, plain, scheme="http")
    url = _url(secure, File(redirect=target))
    assert client.fetch(url, f"sha256:{plain.sha256}").sha256 == plain.sha256


def test_http_leads_to_https(client: Client, secure: FileServer, server: FileServer) -> None:
    file = File(b"upgraded")
    url = server.add("/go", File(redirect=_url(secure, file)))
    assert client.fetch(url).sha256 == file.sha256


def test_an_international_name_is_resolved_and_sent_in_one_form(
    client: Client, authority: Authority
) -> None:
    """Python's resolver alone would turn it into another host (strasse.example.test)."""
    name = "xn--strae-oqa.example.test"
    with FileServer(authority.certificate(name)) as server:
        file = File()
        client.fetch(_url(server, file, host="straße.example.test"))
        assert server.names == client.names.asked == [name]
        assert file.requests[0]["host"] == f"{name}:{server.port}"


@pytest.mark.parametrize("trusted", [True, False])
def test_yt_dlp_trusts_the_same_authorities(
    tmp_path: Path, authority: Authority, secure: FileServer, noise: bytes, trusted: bool
) -> None:
    film = File(noise[:300_000], content_type="video/mp4")
    secure.add("/film.mp4", film)
    client = Client(tmp_path, authority.file if trusted else None)
    order = Order(f"https://{HOST}:{secure.port}/film.mp4", None, 10**9, None, "yt-dlp")

    def fetch() -> Any:
        backend = YtDlp(client.settings, client.guard, Space(tmp_path, reserve=0))
        return asyncio.run(backend.fetch(order, client.part, Progress(), None))

    if trusted:
        assert fetch().sha256 == film.sha256
        assert set(secure.names) == {HOST}
    else:
        with pytest.raises(DownloadRefusedError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch()
