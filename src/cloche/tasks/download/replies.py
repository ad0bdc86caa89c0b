"""What an HTTP reply says about the file and about asking again."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import httpx

from cloche.errors import DownloadBrokenError, DownloadError, DownloadRefusedError
from cloche.tasks.download.filename import choose
from cloche.tasks.download.part import PartMeta

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
#: 4xx that may pass by themselves: timeout, too early, too many requests.
_PASSING = frozenset({408, 425, 429})
#: Types that are compressed files: their Content-Encoding describes the file, not the wire
#: (an old habit of servers), and browsers leave it alone too.
_ARCHIVES = re.compile(r"(?i)application/(x-)?(gzip|gtar|tgz|tar\+gzip|compressed-tar)")


def content_range(reply: httpx.Response) -> tuple[int, int, int | None] | None:
    """(first, last, total) of a 206, total None if unknown; None if it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    if match is None or match[1] is None:
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def complete_size(reply: httpx.Response) -> int | None:
    """The size of the whole file as a 416 tells it."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    return int(match[3]) if match and match[1] is None and match[3] != "*" else None


def content_length(reply: httpx.Response) -> int | None:
    """The declared length of the body in bytes."""
    text = reply.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def content_encoding(reply: httpx.Response) -> str:
    """How the body was compressed for the way; empty when it was not."""
    encoding = str(reply.headers.get("content-encoding", "")).strip().lower()
    if encoding == "identity" or _ARCHIVES.match(reply.headers.get("content-type", "")):
        return ""
    return encoding


def described(reply: httpx.Response) -> PartMeta:
    """What the headers of a whole reply say about the file."""
    headers = reply.headers
    encoded = bool(content_encoding(reply))
    kind = headers.get("content-type", "")
    return PartMeta(
        etag=_sendable(headers.get("etag")),
        last_modified=_sendable(headers.get("last-modified")),
        total=None if encoded else content_length(reply),
        filename=choose(headers.get("content-disposition"), str(reply.request.url)),
        content_type=kind if kind.isprintable() and 0 < len(kind) <= 200 else None,
        encoded=encoded,
    )


def _sendable(value: str | None) -> str | None:
    """A validator that can be sent back as it came."""
    return value if value and value.isascii() and len(value) <= 1000 else None


def retry_after(reply: httpx.Response) -> float | None:
    """Seconds the server asks to wait (RFC 9110 section 10.2.3): a number or a date."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def failure(reply: httpx.Response) -> DownloadError:
    """The error that a status other than success means."""
    status = reply.status_code
    said = f"{reply.request.url.host} answered {status} {reply.reason_phrase}".strip() + "."
    if status in _PASSING or status >= 500:
        return DownloadBrokenError(
            said, why="That may pass.", fix="Retry later.", retry_after=retry_after(reply)
        )
    return DownloadRefusedError(said, fix="Open the URL in a browser: is it still right?")
