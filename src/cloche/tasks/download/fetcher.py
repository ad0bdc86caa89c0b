"""One file over HTTP, streamed to disk and resumed when the connection breaks.

Ranges and validators: RFC 9110 sections 13 and 14; status codes: section 15.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx2

from cloche.backoff import Backoff
from cloche.errors import DownloadBrokenError, DownloadRefusedError
from cloche.settings.model import DownloadSettings
from cloche.tasks.download.cache import Space
from cloche.tasks.download.part import Part
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Order, Stored
from cloche.tasks.download.response import (
    broken,
    complete_size,
    content_range,
    described,
    failure,
    plain_chunks,
)
from cloche.tasks.egress import EgressGuard, guarded_client

#: Bytes collected before they are written, off the event loop.
_WRITE = 1024**2
#: Longest Retry-After, in seconds, that is waited for with the connection's slot held.
_SHORT_WAIT = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _StartOver(Exception):
    """The part does not belong to what the server has now. Never leaves this module."""


class Fetcher:
    """Fetches files as the settings say, past the guard.

    ``backoff`` spaces the attempts to resume; without ``space`` only the reserve of the
    part's own disk is kept.
    """

    def __init__(
        self,
        settings: DownloadSettings,
        guard: EgressGuard,
        backoff: Backoff | None = None,
        space: Space | None = None,
    ) -> None:
        self._settings = settings
        self._space = space
        self._guard = guard
        self._backoff = backoff or Backoff(first=0.2, limit=5, jitter=0.2)

    async def fetch(
        self, order: Order, part: Part, progress: Progress, known: Stored | None = None
    ) -> Stored | None:
        """Complete ``part``, continuing what it holds; what the file is.

        None means that the server still has the ``known`` file, and nothing was transferred.
        Raises `EgressRefusedError`, `DownloadRefusedError` or, once ``resumes`` attempts in
        a row brought no new byte, `DownloadBrokenError`; the part stays to be continued,
        unless it is of no use.
        """
        timeout = httpx2.Timeout(
            self._settings.read_timeout, connect=self._settings.connect_timeout
        )
        async with guarded_client(
            self._guard,
            timeout=timeout,
            user_agent=self._settings.user_agent,
            ca_file=self._settings.ca_file,
        ) as client:
            space = self._space or Space(part.path.parent, reserve=self._settings.reserve)
            transfer = _HttpTransfer(
                self._settings, self._guard, client, order, part, progress, space
            )
            return await self._persist(transfer, known)

    async def _persist(self, transfer: _HttpTransfer, known: Stored | None) -> Stored | None:
        furthest, failures = transfer.part.size, 0
        while True:
            try:
                return await transfer.attempt(known)
            except DownloadBrokenError as error:
                advanced = transfer.part.size > furthest
                furthest = max(furthest, transfer.part.size)
                failures = 1 if advanced else failures + 1
                if failures > self._settings.resumes or (error.retry_after or 0) > _SHORT_WAIT:
                    raise
                await asyncio.sleep(max(error.retry_after or 0, self._backoff.delay(failures)))
                transfer.progress.restarts += 1


class _HttpTransfer:
    """One file on its way."""

    def __init__(
        self,
        settings: DownloadSettings,
        guard: EgressGuard,
        client: httpx2.AsyncClient,
        order: Order,
        part: Part,
        progress: Progress,
        space: Space,
    ) -> None:
        self.part = part
        self._space = space
        self.progress = progress
        self._settings = settings
        self._guard = guard
        self._client = client
        self._order = order
        self._total: int | None = None  # bytes of the whole file, by the last reply
        progress.received = part.size

    async def attempt(self, known: Stored | None) -> Stored | None:
        """Ask once for what is missing, and take what comes."""
        try:
            return await self._ask(known)
        except _StartOver:
            self.part.discard()
            self.progress.received = 0
            return await self._ask(known)
        except httpx2.TransportError as error:
            raise broken(error) from error

    async def _ask(self, known: Stored | None) -> Stored | None:
        if self._resumable() and not self.part.is_hashed:
            await self.part.rehash()
        resuming = self._resumable()
        async with self._reply(self._headers(resuming, known)) as reply:
            if reply.status_code == 304 and known is not None and not resuming:
                return None
            if reply.status_code == 416 and resuming:
                return self._complete_already(reply)
            await self._receive(reply, resuming)
        return self._stored()

    def _resumable(self) -> bool:
        """Whether the rest can be asked for without mixing two versions of the file: its
        server tells them apart, or a checksum does.
        """
        meta = self.part.meta
        if meta is None or meta.encoded or not self.part.size:
            return False
        return bool(meta.validator or self._order.checksum)

    def _headers(self, resuming: bool, known: Stored | None) -> dict[str, str]:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if resuming and self.part.meta:
            headers["Range"] = f"bytes={self.part.size}-"
            if self.part.meta.validator:
                headers["If-Range"] = self.part.meta.validator
        elif known is not None:
            if known.etag:
                headers["If-None-Match"] = known.etag
            if known.last_modified:
                headers["If-Modified-Since"] = known.last_modified
        return headers

    @asynccontextmanager
    async def _reply(self, headers: dict[str, str]) -> AsyncIterator[httpx2.Response]:
        """The reply at the end of the redirects, its body not yet read."""
        url = self._guard.check_url(self._order.url)
        for _ in range(self._settings.max_redirects + 1):
            request = self._client.build_request("GET", url, headers=headers)
            reply = await self._client.send(request, stream=True)
            try:
                location = reply.headers.get("location")
                if reply.status_code not in _REDIRECTS or not location:
                    yield reply
                    return
                url = self._guard.check_url(_joined(url, location))
                self._check_still_private(url)
            finally:
                await reply.aclose()
        raise DownloadRefusedError(
            f"{url.host} redirects too often.",
            why=f"More than {self._settings.max_redirects} redirects (download.max_redirects).",
        )

    def _check_still_private(self, url: httpx2.URL) -> None:
        """Refuse to go on over http what was asked for over https: anybody on the way could
        replace the file. With a checksum nobody can.
        """
        if not self._order.url.startswith("https:") or url.scheme == "https":
            return
        if self._order.checksum is None:
            raise DownloadRefusedError(
                f"The download leads from https to http ({url.host}).",
                why="Anybody on the way could replace the file.",
                fix="Give a checksum, or ask for the http URL itself.",
            )

    def _complete_already(self, reply: httpx2.Response) -> Stored:
        """A 416 to a part that turns out to be the whole file."""
        total = self.part.meta.total if self.part.meta else None
        same = total == self.part.size or (total is None and self._is_of_same_version(reply))
        if same and complete_size(reply) == self.part.size:
            return self._stored()
        raise _StartOver("the server has fewer bytes than the part")

    async def _receive(self, reply: httpx2.Response, resuming: bool) -> None:
        if reply.status_code == 206 and resuming:
            self._check_continues(reply)
        elif reply.status_code in (200, 203):
            self.part.begin(described(reply))
            self._total = self.part.meta.total if self.part.meta else None
        elif reply.status_code < 300:
            raise DownloadRefusedError(
                f"{reply.request.url.host} answered {reply.status_code}, which carries no file."
            )
        else:
            raise failure(reply)
        total = self._total
        self.progress.received, self.progress.total = self.part.size, total
        self._check_size(total or 0)
        with self._kept_only_if_it_fits():
            self._space.check(max(0, (total or 0) - self.part.size))
        await self._save(reply)
        if total is not None and self.part.size != total:
            raise DownloadBrokenError(
                "The transfer ended early.", why=f"{self.part.size} of {total} bytes came."
            )

    def _check_continues(self, reply: httpx2.Response) -> None:
        """Whether a 206 is the rest of this very part."""
        meta, found = self.part.meta, content_range(reply)
        if found is None or found[0] != self.part.size or found[1] < found[0]:
            raise _StartOver(f"Content-Range: {reply.headers.get('content-range')}")
        total = found[2] if meta is None or meta.total is None else meta.total
        if total is None or found[1] >= total or found[2] not in (None, total):
            raise _StartOver("the file has another size now, or none that is known")
        if not self._is_of_same_version(reply):
            raise _StartOver("the server does not say that this is the same file")
        self._total = total

    def _is_of_same_version(self, reply: httpx2.Response) -> bool:
        meta, headers = self.part.meta, reply.headers
        if meta is None:
            return False
        if meta.validator is None:
            return self._order.checksum is not None  # which tells a mixture
        return meta.same_version(headers.get("etag"), headers.get("last-modified"))

    async def _save(self, reply: httpx2.Response) -> None:
        """Write the body as it comes, in large pieces; what came is kept if it breaks."""
        buffer = bytearray()
        try:
            async for chunk in plain_chunks(reply):
                buffer += chunk
                self.progress.received = self.part.size + len(buffer)
                self._check_size(self.progress.received)
                if len(buffer) >= _WRITE:
                    data, buffer = bytes(buffer), bytearray()
                    await asyncio.to_thread(self._append, data)
        finally:
            if buffer and self.part.meta:
                self._append(bytes(buffer))

    def _append(self, data: bytes) -> None:
        with self._kept_only_if_it_fits():
            self._space.check(len(data))
            self.part.append(data)

    @contextmanager
    def _kept_only_if_it_fits(self) -> Iterator[None]:
        """Where there is no room, what came is given back."""
        try:
            yield
        except DownloadRefusedError:
            self.part.discard()
            self.progress.received = 0
            raise

    def _check_size(self, size: int) -> None:
        if size <= self._order.max_size:
            return
        self.part.discard()
        raise DownloadRefusedError(
            "The file is too large.",
            why=f"It has at least {size} bytes; at most {self._order.max_size} were to be taken.",
            fix="Raise max_size of the request, or the setting download.max_size.",
        )

    def _stored(self) -> Stored:
        meta, size = self.part.meta, self.part.size
        sha256 = self.part.verify()
        return Stored(
            sha256=sha256,
            size=size,
            filename=self._order.filename or (meta.filename if meta else "") or "download",
            content_type=meta.content_type if meta else None,
            etag=meta.etag if meta else None,
            last_modified=meta.last_modified if meta else None,
        )


def _joined(url: httpx2.URL, location: str) -> str:
    try:
        return str(url.join(location).copy_with(fragment=None))
    except httpx2.InvalidURL as error:
        raise DownloadRefusedError(
            f"{url.host} redirects to something that is no URL.", why=str(error)
        ) from error
