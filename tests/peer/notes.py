"""What people found out about single tests. Names are as pytest writes them."""

from __future__ import annotations

#: Why a test passes on neither, or on one only, where pytest's own words do not say it.
WHY: dict[str, str] = {}
