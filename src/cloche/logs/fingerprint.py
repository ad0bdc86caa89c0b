"""What makes two errors the same: their category, their step, and what is left of the message
when ids and numbers are taken out. Pure text.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

#: What differs from one occurrence to the next, by the name of what stands for it. The first that
#: fits counts: a number inside quotes is part of the text.
_VARYING = re.compile(
    r"""
    (?P<id>    \b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b)
    # Hexadecimal needs a digit among it: "deadbeef" and "defaced" are words.
  | (?P<hex>   \b0x[0-9a-f]+\b | \b(?=[a-f]*\d)[0-9a-f]{8,}\b)
  | (?P<text>  (?<!\w)'[^']*' | "[^"]*")
  | (?P<n>     \d+(?:[.,:]\d+)*)
  | (?P<blank> \s+)
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Characters of a message that count.
_LONGEST = 300


@lru_cache(maxsize=4096)
def normalised(message: str) -> str:
    """``connection to 10.0.0.7:5432 refused`` -> ``connection to [n] refused``."""
    return _VARYING.sub(_stand_in, message[: 4 * _LONGEST]).strip()[:_LONGEST]


def _stand_in(found: re.Match[str]) -> str:
    return " " if found.lastgroup == "blank" else f"[{found.lastgroup}]"


def fingerprint(category: str, step: str | None, message: str) -> str:
    """Twelve hexadecimal digits, the same for the same kind of error."""
    parts = "\0".join((category, step or "", normalised(message)))
    return hashlib.sha256(parts.encode()).hexdigest()[:12]
