"""Whatever was used before a fork: a child has ids, connections, locks and threads of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("how", ["os.fork", "libc", "fork", "forkserver", "spawn"])
def test_a_forked_process_shares_nothing_with_its_parent(
    environ: dict[str, str], tmp_path: Path, how: str
) -> None:
    children = 2 if how in ("forkserver", "spawn") else 4
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.fork.program", how, str(children), str(tmp_path)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    ids = done.stdout.split()
    assert len(ids) > 100
    assert len(ids) == len(set(ids))
