"""The short form of the soak; ``make soak`` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.soak import soak


@pytest.mark.timeout(400)
def test_every_number_is_accounted_for(tmp_path: Path) -> None:
    passed, lines = soak(tmp_path, tasks=1500, seconds=15, interval=2, pairs=False, seed=1)
    print("\n".join(lines))
    assert passed, "\n".join(lines)
