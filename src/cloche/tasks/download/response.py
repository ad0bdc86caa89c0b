"""What an HTTP reply says about the file, and its body as the file's own bytes."""

from __future__ import annotations

import re
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from email.utils import parsedate_to_datetime

import httpx2

from cloche.errors import DownloadBrokenError, DownloadError, DownloadRefusedError
from cloche.tasks.download.filename import choose
from cloche.tasks.download.part import PartMeta

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")

#: 4xx that may pass by themselves: timeout, too early, too many requests.
_PASSING = frozenset({408, 425, 429})

#: Types that are compressed files: their Content-Encoding describes the file, not the wire
#: (an old habit of servers), and browsers leave it alone too.
_ARCHIVES = re.compile(r"(?i)application/(x-)?(gzip|gtar|tgz|tar\+gzip|compressed-tar)")

#: Most bytes that one step of decompression gives: a bomb is met by the size cap, not by
#: the memory.
_STEP = 1024**2

_CODINGS = ("gzip", "x-gzip", "deflate")

#: Servers compress once, some proxies once more.
_MOST_CODINGS = 3

_GZIP = b"\x1f\x8b"

#: zlib's ``wbits`` for each format.
_GZIP_FORMAT, _ZLIB_FORMAT, _RAW_FORMAT = 31, 15, -15

#: OpenSSL's verification results (x509_vfy.h) that have a plain name and a remedy.
_VERDICTS = (
    (
        {62, 64},  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
        "is for another name",
        "Is the host spelled as its certificate has it?",
    ),
    (
        {2, 18, 19, 20, 21},  # issuer unknown, or self-signed
        "is from an authority that is not trusted",
        "If it is yours, put its certificate in the file that download.ca_file names.",
    ),
    ({10}, "has expired", "The server's operator must renew it."),
    ({9}, "is not valid yet", "Is the clock of this machine right?"),
)


def content_range(reply: httpx2.Response) -> tuple[int, int, int | None] | None:
    """(first, last, total) of a 206, total None if unknown; None if it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    if match is None or match[1] is None:
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def complete_size(reply: httpx2.Response) -> int | None:
    """The size of the whole file as a 416 tells it."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    return int(match[3]) if match and match[1] is None and match[3] != "*" else None


def content_length(reply: httpx2.Response) -> int | None:
    """The declared length of the body in bytes; chunks overrule it (RFC 9112 section 6.3)."""
    if "transfer-encoding" in reply.headers:
        return None
    text = reply.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def content_encodings(reply: httpx2.Response) -> list[str]:
    """How the body was compressed for the way, in the order in which it was done."""
    if _ARCHIVES.match(reply.headers.get("content-type", "")):
        return []
    said = str(reply.headers.get("content-encoding", "")).lower().split(",")
    return [one.strip() for one in said if one.strip() not in ("", "identity")]


def described(reply: httpx2.Response) -> PartMeta:
    """What the headers of a whole reply say about the file."""
    headers = reply.headers
    encoded = bool(content_encodings(reply))
    kind = headers.get("content-type", "")
    return PartMeta(
        etag=_sendable(headers.get("etag")),
        last_modified=_sendable(headers.get("last-modified")),
        total=None if encoded else content_length(reply),
        filename=choose(headers.get("content-disposition"), str(reply.request.url)),
        content_type=kind if kind.isprintable() and 0 < len(kind) <= 200 else None,
        encoded=encoded,
        dated=_is_older(headers.get("last-modified"), headers.get("date")),
    )


def _is_older(modified: str | None, date: str | None) -> bool:
    """Whether the file could not have been changed once more in the second it is dated
    (RFC 9110 section 8.8.2.2)."""
    try:
        sent = parsedate_to_datetime(date).timestamp() if date else time.time()
        return parsedate_to_datetime(modified or "").timestamp() + 1 <= sent
    except (ValueError, TypeError, OverflowError):
        return False


def _sendable(value: str | None) -> str | None:
    """A validator that can be sent back as it came."""
    return value if value and value.isascii() and len(value) <= 1000 else None


def retry_after(reply: httpx2.Response) -> float | None:
    """Seconds the server asks to wait (RFC 9110 section 10.2.3): a number or a date."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def failure(reply: httpx2.Response) -> DownloadError:
    """The error that a status other than success means."""
    status = reply.status_code
    said = f"{reply.request.url.host} answered {status} {reply.reason_phrase}".strip() + "."
    if status in _PASSING or status >= 500:
        return DownloadBrokenError(
            said, why="That may pass.", fix="Retry later.", retry_after=retry_after(reply)
        )
    return DownloadRefusedError(said, fix="Open the URL in a browser: is it still right?")


async def plain_chunks(reply: httpx2.Response) -> AsyncIterator[bytes]:
    """The bytes of the file: as they come, or decompressed where a server compressed them
    although ``identity`` was asked for.
    """
    codings = content_encodings(reply)
    if not codings:
        async for chunk in reply.aiter_raw():
            yield chunk
        return
    unknown = next((coding for coding in codings if coding not in _CODINGS), "")
    if unknown or len(codings) > _MOST_CODINGS:
        raise DownloadRefusedError(
            f"The server compresses the file with {(unknown or ', '.join(codings))[:50]!r}.",
            why="Only gzip and deflate are understood, and no compression was asked for.",
        )
    inflaters = [_Inflater(coding) for coding in reversed(codings)]
    async for chunk in reply.aiter_raw():
        for piece in _through(inflaters, [chunk]):
            yield piece
    # Nothing at all is an empty file, where the reply says that this was all of it.
    framed = "transfer-encoding" in reply.headers or content_length(reply) == 0
    for inflater in inflaters:
        if not (inflater.complete or (inflater.untouched and framed)):
            raise DownloadBrokenError(
                "The transfer ended early.", why="The compressed data is cut."
            )


def _through(inflaters: list[_Inflater], chunks: Iterable[bytes]) -> Iterable[bytes]:
    for inflater in inflaters:
        chunks = _each(inflater, chunks)
    return chunks


def _each(inflater: _Inflater, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield from inflater.pieces(chunk)


class _Inflater:
    """One coding undone: gzip of any number of members (RFC 1952 section 2.2), zlib, or the
    raw deflate that some servers send under its name.
    """

    def __init__(self, coding: str) -> None:
        self._deflate = coding == "deflate"
        self._stream: zlib._Decompress | None = None
        self._head = b""  # what came of a member whose format is not known yet
        self._members = 0

    @property
    def untouched(self) -> bool:
        """Whether no byte has come."""
        return not self._members and not self._head and self._stream is None

    @property
    def complete(self) -> bool:
        """Whether what came is whole."""
        return self._members > 0 and self._stream is None and not self._head

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` becomes. Raises `DownloadBrokenError` when it is damaged."""
        try:
            while data:
                if self._stream is None:
                    data = self._begin(data)
                    continue
                yield self._stream.decompress(data, _STEP)
                data = self._stream.unconsumed_tail
                if self._stream.eof:
                    data, self._stream = self._stream.unused_data, None
                    self._members += 1
        except zlib.error as error:
            raise DownloadBrokenError("The compressed data is damaged.", why=str(error)) from error

    def _begin(self, data: bytes) -> bytes:
        """Choose the format by the first two bytes; what is left to inflate."""
        if self._members and not self._head:
            data = data.lstrip(b"\0")  # padding after a member, which tar and tapes leave
        self._head += data
        if len(self._head) < 2:
            return b""
        data, self._head = self._head, b""
        self._stream = zlib.decompressobj(wbits=self._format(data))
        return data

    def _format(self, data: bytes) -> int:
        if data.startswith(_GZIP):
            return _GZIP_FORMAT
        if self._members:
            raise DownloadBrokenError(
                "The compressed data is damaged.", why="Something else follows its end."
            )
        # A zlib header: method 8, and a multiple of 31 (RFC 1950 section 2.2).
        zlib_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
        return _ZLIB_FORMAT if zlib_header or not self._deflate else _RAW_FORMAT


def broken(error: httpx2.TransportError) -> DownloadBrokenError | DownloadRefusedError:
    """The error to raise: most may mend, a wrong name or certificate do not."""
    host = error.request.url.host
    why = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(host, cause)
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return DownloadRefusedError(
                f"There is no host {host}.", why=why, fix="Is the URL spelled right?"
            )
        cause = cause.__cause__ or cause.__context__
    return DownloadBrokenError(
        f"The connection to {host} failed.", why=why, fix="Retry later; what came is kept."
    )


def _untrusted(host: str, error: ssl.SSLCertVerificationError) -> DownloadRefusedError:
    for codes, meaning, fix in _VERDICTS:
        if error.verify_code in codes:
            return DownloadRefusedError(
                f"The certificate of {host} {meaning}.", why=error.verify_message, fix=fix
            )
    return DownloadRefusedError(
        f"The certificate of {host} is not valid.", why=error.verify_message
    )
