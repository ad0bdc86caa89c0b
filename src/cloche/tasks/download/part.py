"""A file that is still growing, and what must be known to continue it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cloche.errors import DownloadRefusedError
from cloche.tasks.download.cache import full_disk_told

#: Length of each algorithm's digest in hexadecimal digits.
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}

#: Bytes read at once when a part is hashed again.
_BLOCK = 8 * 1024**2


@dataclass(frozen=True, slots=True)
class Checksum:
    """An algorithm and the digest it must give, in lower-case hexadecimal."""

    algorithm: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``sha256:<hex>`` (or md5, sha1, sha512); a bare 64-digit one is SHA-256."""
        algorithm, _, digest = text.strip().lower().rpartition(":")
        algorithm = algorithm.replace("-", "") or "sha256"
        is_hex = not set(digest) - set("0123456789abcdef")
        if _DIGITS.get(algorithm) != len(digest) or not is_hex:
            raise DownloadRefusedError(
                f"{text[:200]!r} is not a checksum.",
                why="It must be an algorithm and its digest in hexadecimal digits.",
                fix="Write sha256:<64 digits>, sha512:<128>, sha1:<40> or md5:<32>.",
            )
        return cls(algorithm, digest)

    def new(self) -> Any:
        """An empty hash of this algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


@dataclass(frozen=True, slots=True)
class PartMeta:
    """What the server said about the file: header values as received, ``total`` in bytes.

    ``encoded`` says the bytes on disk are not those on the wire, so offsets do not match.
    ``dated`` says Last-Modified tells versions apart: the file was older than a second then.
    """

    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None
    filename: str = ""
    content_type: str | None = None
    encoded: bool = False
    dated: bool = True

    @property
    def validator(self) -> str | None:
        """A value for If-Range (RFC 9110 section 13.1.5): only one that every change of a byte
        changes, which a weak ETag and the date of a file written just now are not."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified if self.dated else None

    def same_version(self, etag: str | None, last_modified: str | None) -> bool:
        """Whether a reply with these headers speaks of this very version of the file."""
        if etag and self.etag and etag == self.etag == self.validator:
            return True
        said = ((self.etag, etag), (self.last_modified, last_modified))
        both = [(ours, theirs) for ours, theirs in said if ours and theirs]
        return bool(both) and all(ours == theirs for ours, theirs in both)


class Part:
    """The bytes received so far with their hashes, and a JSON file beside them.

    Used by one fetch at a time (the cache's URL lock). Blocking, except `rehash`.
    """

    def __init__(self, path: Path, checksum: Checksum | None = None) -> None:
        self.path = path
        self._sidecar = path.with_name(f"{path.name}.json")
        self._checksum = checksum
        self.meta = self._read_meta()
        self.size = path.stat().st_size if self.meta and path.exists() else 0
        self._hashed = 0
        self._hashes = self._new_hashes()

    async def rehash(self) -> None:
        """Hash what an earlier process left; off the event loop, can be cancelled."""
        with await asyncio.to_thread(open, self.path, "rb") as file:
            file.seek(self._hashed)
            while block := await asyncio.to_thread(file.read, min(_BLOCK, self.size)):
                await asyncio.to_thread(self._update, block)

    @property
    def is_hashed(self) -> bool:
        """Whether the hashes cover all bytes on disk."""
        return self._hashed == self.size

    def begin(self, meta: PartMeta) -> None:
        """Start over, for a file that the server describes so."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self.size = self._hashed = 0
        self._hashes = self._new_hashes()
        self.meta = meta
        temporary = self._sidecar.with_name(f"{self._sidecar.name}.new")
        temporary.write_text(json.dumps(asdict(meta)))
        os.replace(temporary, self._sidecar)

    def append(self, data: bytes) -> None:
        """Write and hash. Raises `DownloadRefusedError` when the disk is full."""
        with full_disk_told(self.path.parent), open(self.path, "ab", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        self.size += len(data)
        self._update(data)

    def verify(self) -> str:
        """The SHA-256 of the whole file.

        Another checksum than expected discards the part: `DownloadRefusedError`.
        """
        sha256, *others = [value.hexdigest() for value in self._hashes]
        if self._checksum and self._checksum.digest != (others or [sha256])[0]:
            self.discard()
            raise DownloadRefusedError(
                f"The file has the wrong checksum: {self._checksum} was expected.",
                why=f"Its {self._checksum.algorithm} is {(others or [sha256])[0]}.",
                fix="Check the checksum; if it is right, the server has another file.",
            )
        return str(sha256)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)
        self.meta = None
        self.size = self._hashed = 0
        self._hashes = self._new_hashes()

    def forget(self) -> None:
        """Remove what describes it, after its bytes were moved elsewhere."""
        self._sidecar.unlink(missing_ok=True)

    def _new_hashes(self) -> list[Any]:
        hashes = [hashlib.sha256(usedforsecurity=False)]
        if self._checksum and self._checksum.algorithm != "sha256":
            hashes.append(self._checksum.new())
        return hashes

    def _update(self, data: bytes) -> None:
        for value in self._hashes:
            value.update(data)
        self._hashed += len(data)

    def _read_meta(self) -> PartMeta | None:
        try:
            return PartMeta(**json.loads(self._sidecar.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None  # absent, torn by a crash or of another version: start over
