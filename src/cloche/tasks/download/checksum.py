"""The checksum a caller expects of a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self

from cloche.errors import DownloadRefusedError

#: Length of each algorithm's digest in hexadecimal digits.
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


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
