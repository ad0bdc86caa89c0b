"""Coroutine tasks under ``cloche up`` and ``cloche worker``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.launch.pools import COROUTINES, cores
from cloche.testing import clean_environ
from tests.acceptance.stack import Stack
from tests.integration.aio_task.conftest import ROOT

FORGOTTEN = """
from celery import Celery
app = Celery("forgetful")

@app.task(name="forgetful.hello")
async def hello():
    return "hello"

@app.task
def other():
    return 1
"""


def test_up_runs_the_example_on_asyncio_with_a_process_per_core(tmp_path: Path, site: str) -> None:
    (tmp_path / "feeds.py").write_text((ROOT / "examples" / "feeds" / "feeds.py").read_text())
    urls = [f"{site}/{10**number}" for number in range(20)]
    with Stack(tmp_path, "-A", "feeds") as stack:
        assert f"{cores()} × asyncio, {COROUTINES} at once" in stack.output
        assert "1 × prefork" in stack.output  # downloads
        code = f"import json, feeds; print(json.dumps(feeds.sizes.delay({urls}).get(timeout=30)))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=stack.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert json.loads(done.stdout or "null") == {url: n + 1 for n, url in enumerate(urls)}, (
            done.stderr + stack.output
        )
        assert len(re.findall(r"pool +cloche.aio.pool × 1000", stack.output)) == cores()
        stack.signal(signal.SIGINT)
        assert stack.process.wait(60) == 0
        assert "Traceback" not in stack.output


@pytest.mark.parametrize("pool", ["auto", "threads"])
def test_a_worker_refuses_an_async_def_that_its_pool_would_not_await(
    tmp_path: Path, broker_url: str, pool: str
) -> None:
    (tmp_path / "forgetful.py").write_text(FORGOTTEN)
    done = subprocess.run(
        [sys.executable, "-m", "cloche", "worker", "-A", "forgetful", "-P", pool],
        cwd=tmp_path,
        env=clean_environ(CLOCHE_BROKER__URL=broker_url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 5
    assert "forgetful.hello is an async def" in done.stderr
    assert "@cloche.async_task" in done.stderr
