"""Flower on a worker of ours: its pages and its API see workers, queues and tasks."""

from __future__ import annotations

import contextlib
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from cloche.app import create_app
from cloche.settings import load
from cloche.testing import BrokerProcess, clean_environ, free_port, wait_until

ROOT = Path(__file__).parents[3]
APP = "tests.integration.health.project"


def start(directory: Path, environ: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    with (directory / f"{words[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cloche", *words, "-A", APP],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def ended(flower: subprocess.Popen[bytes]) -> int:
    """End it, its exit code. What Flower's signal handler raises is lost where it meets one of
    Python's own callbacks: asked again until it has heard."""
    for _ in range(20):
        flower.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return flower.wait(2)
    raise AssertionError("Flower does not end")


def test_flower_sees_our_workers_queues_and_tasks(tmp_path: Path, broker: BrokerProcess) -> None:
    pytest.importorskip("flower", reason="NOT TESTED: Flower is not installed")
    environ = clean_environ(CLOCHE_BROKER__URL=broker.url, PYTHONPATH=str(ROOT))
    port = free_port()
    worker = start(tmp_path, environ, "worker", "-c", "1")
    flower = start(tmp_path, environ, "flower", "--port", str(port))
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{url}/workers", timeout=5).status_code == 401
        return False

    try:
        wait_until(answers, "Flower to ask for its password", 60)
        password = tmp_path / ".cloche" / "flower.password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        log = (tmp_path / "flower.log").read_text()
        assert log.count(password.read_text().strip()) == 1
        assert (
            password.read_text().strip().encode()
            not in Path(f"/proc/{flower.pid}/cmdline").read_bytes()
            or not Path("/proc").exists()
        )
        with httpx2.Client(
            base_url=url, auth=("cloche", password.read_text().strip()), timeout=20
        ) as client:
            wait_until(lambda: "worker@" in client.get("/workers").text, "the worker", 60)
            app = create_app("sender", load({"broker.url": broker.url}, environ={}).settings)
            ledger = str(tmp_path / "ledger")
            sent = app.send_task("tasks.health.note", (ledger, "x"), ignore_result=True)

            def done() -> bool:
                tasks = client.get("/api/tasks").json()
                return bool(tasks.get(sent.id, {}).get("state") == "SUCCESS")

            wait_until(done, "the task's success", 40)
            workers = client.get("/api/workers?refresh=1").json()
            (seen,) = workers.values()
            assert "default" in {queue["name"] for queue in seen["active_queues"]}
            page = client.get("/broker").text
            assert "default" in page
            assert "redis://" in page
            lengths = client.get("/api/queues/length").json()["active_queues"]
            assert {"name": "default", "messages": 0} in lengths
        assert ended(flower) == 0
        again = start(tmp_path, environ, "flower", "--port", str(port))
        wait_until(answers, "Flower again", 60)
        assert (tmp_path / "flower.log").read_text().count(password.read_text().strip()) == 1
        ended(again)
    finally:
        ended(flower)
        worker.terminate()
        worker.wait(30)


def test_without_flower_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'flower' else find(name, *more)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "cloche", "flower", "-A", APP],
        cwd=tmp_path,
        env=clean_environ(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'cloche[flower]'" in done.stderr
