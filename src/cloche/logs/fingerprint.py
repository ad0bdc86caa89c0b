"""What makes two errors the same: their category, their step, and what is left of the message
when ids and numbers are taken out. Pure text.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

#: What differs from one occurrence to the next, and what stands for it. In this order.
_VARYING = (
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE), "[id]"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "[hex]"),
    # Hexadecimal needs a digit among it: "deadbeef" and "defaced" are words.
    (re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b", re.IGNORECASE), "[hex]"),
    (re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\""), "[text]"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "[n]"),
    (re.compile(r"\s+"), " "),
)
#: Characters of a message that count.
_LONGEST = 300


@lru_cache(maxsize=4096)
def normalised(message: str) -> str:
    """``connection to 10.0.0.7:5432 refused`` -> ``connection to [n] refused``."""
    text = message[: 4 * _LONGEST]
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return text.strip()[:_LONGEST]


def fingerprint(category: str, step: str | None, message: str) -> str:
    """Twelve hexadecimal digits, the same for the same kind of error."""
    parts = "\0".join((category, step or "", normalised(message)))
    return hashlib.sha256(parts.encode()).hexdigest()[:12]
