"""What people found out about single tests. Names are as pytest writes them."""

from __future__ import annotations

_RECOVERY = "t/integration/test_connection_recovery.py::"

#: Tests that the suite itself skips on any URL but plain ``redis://``, and why that is right.
CANNOT_APPLY = {
    _RECOVERY + name: (
        "waits until kombu's Redis channel has a BRPOP under way (its `_in_poll`); "
        "ours never blocks in BRPOP"
    )
    for name in ("test_reconnect_cleanup_is_bounded", "test_cold_shutdown_teardown_is_bounded")
}

#: Why a test passes on neither, where pytest's own words do not say it.
WHY: dict[str, str] = {}
