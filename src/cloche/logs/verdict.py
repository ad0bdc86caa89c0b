"""What a database's refusal of rows says of them."""

from __future__ import annotations

from enum import Enum, auto


class Verdict(Enum):
    """REPEATED: some are there already. UNFIT: some can never be stored."""

    REPEATED = auto()
    UNFIT = auto()
