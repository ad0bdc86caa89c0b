"""Serve a finished file: ranges, validators, a safe type and a name in any language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from cloche.web.problems import problem

#: Types a browser may be told as they are; none can run script in our origin.
_PLAIN = re.compile(
    r"(image/(?!svg)|audio/|video/|font/)[\w.+-]+|text/(plain|csv)"
    r"|application/(pdf|zip|gzip|json|x-tar|x-7z-compressed|epub\+zip|octet-stream)"
)
#: More ranges of one file are nobody's wish; more digits no file's size.
_MOST_RANGES, _DIGITS = 16, 18
_BYTES = re.compile(r"bytes=(\d+-\d*|-\d+)(,\s*(\d+-\d*|-\d+))*", re.IGNORECASE)


class StoredFile(FileResponse):
    """A file under its content's hash. Larger chunks than Starlette's: fewer thread hops."""

    chunk_size = 512 * 1024

    def __init__(self, path: Path, ranges: str | None, **options: Any) -> None:
        super().__init__(path, **options)
        self._ranges = ranges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = [pair for pair in scope["headers"] if pair[0].lower() not in (b"range", b"if-range")]
        if self._ranges:
            kept.append((b"range", self._ranges.encode()))
        await super().__call__({**scope, "headers": kept}, receive, send)


def file_response(
    path: Path, *, sha256: str, filename: str, content_type: str | None, request: Headers
) -> Response:
    """The file, or 304 when the client's copy is the same (RFC 9110 §13.1.2)."""
    etag = f'"{sha256}"'
    headers = {
        "etag": etag,
        "cache-control": "private, no-cache",
        "content-disposition": disposition(filename),
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
    }
    if matches(request.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    size = path.stat().st_size
    ranges = _ranges(request.get("range"), size)
    if request.get("if-range", etag) != etag:
        ranges = None
    if ranges is not None and not ranges:
        refusal = problem(
            416,
            "The file is shorter than that",
            why=f"It has {size} bytes, and none of them is in the Range asked for.",
        )
        refusal.headers["content-range"] = f"bytes */{size}"
        return refusal
    return StoredFile(path, ranges, media_type=safe_type(content_type), headers=headers)


def _ranges(header: str | None, size: int) -> str | None:
    """The Range header with what the file has of it; None where it is to be ignored (RFC 9110
    section 14.2: another unit, another form, too many), empty where nothing is left of it."""
    if header is None or not _BYTES.fullmatch(header.strip()):
        return None
    kept = []
    asked = header.partition("=")[2].split(",")
    for first, _, last in (one.strip().partition("-") for one in asked):
        if max(len(first), len(last)) > _DIGITS or (first and last and int(last) < int(first)):
            return None
        if (int(first) < size) if first else (int(last) > 0 and size > 0):
            kept.append(f"{first}-{last}")
    if len(asked) > _MOST_RANGES:
        return None
    return f"bytes={','.join(kept)}" if kept else ""


def matches(if_none_match: str | None, etag: str) -> bool:
    """Weak comparison of an ``If-None-Match`` list with our entity tag."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def disposition(filename: str) -> str:
    """``Content-Disposition`` as in RFC 6266: an ASCII name for old clients, UTF-8 for all."""
    name = re.sub(r"[\x00-\x1f\x7f/\\]", "_", filename) or "download"
    plain = re.sub(r'[^\x20-\x7e]|["%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def safe_type(content_type: str | None) -> str:
    """``content_type`` if it is harmless, else plain bytes."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind if _PLAIN.fullmatch(kind) else "application/octet-stream"
