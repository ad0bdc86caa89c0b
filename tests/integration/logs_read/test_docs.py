"""The blocks of the documents about execution logs run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.database import Database
from cloche.logs.read.reader import LogReader
from cloche.settings import Settings
from cloche.testing import clean_environ

DOCS = Path(__file__).parents[3] / "docs"


def _blocks() -> list[str]:
    pages = ("execution-logs.md", "fastapi.md")
    return [
        block
        for page in pages
        for block in re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    ]


@pytest.mark.parametrize("number", range(5))
def test_each_block_runs(number: int, tmp_path: Path, broker_url: str) -> None:
    blocks = _blocks()
    assert len(blocks) == 5
    environ = clean_environ(CLOCHE_BROKER__URL=broker_url, CLOCHE_LOGS__FALLBACK="direct")
    done = subprocess.run(
        [sys.executable, "-c", blocks[number]],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_run_of_the_document_is_told_as_a_trace(tmp_path: Path) -> None:
    """Without a broker its records go straight to the database."""
    (block,) = [one for one in _blocks() if "log.run(" in one]
    environ = clean_environ(
        CLOCHE_BROKER__URL="redis://127.0.0.1:1/0", CLOCHE_LOGS__FALLBACK="direct"
    )
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    reader = LogReader(Database(Settings(run_dir=tmp_path / ".cloche")))
    trace = reader.trace("run-7")
    assert trace is not None
    assert trace.status == "succeeded"
    assert [(step.path, step.finished) for step in trace.steps] == [("fetch", 2), ("store", 1)]
