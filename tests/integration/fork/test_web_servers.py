"""Web servers that load the application, which publishes, and fork their workers afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloche.testing import free_port, wait_until

MODULE = "tests.integration.fork.web"

GUNICORN = ("-m", "gunicorn", "--bind", "{address}", f"{MODULE}:application")
#: It forks in C, of which Python's fork handlers hear nothing.
UWSGI = (
    *(
        "-c",
        "import pyuwsgi; pyuwsgi.run()",
        "--http-socket",
        "{address}",
        "--module",
        MODULE,
        "--master",
        "--need-app",
    ),
    *("--disable-logging", "--die-on-term"),
)
SERVERS: dict[str, tuple[str, ...]] = {
    "gunicorn": (*GUNICORN, "--preload", "-w", "3", "--threads", "4"),
    "uwsgi": (*UWSGI, "-p", "3"),
    "uwsgi-threads": (*UWSGI, "-p", "2", "--threads", "4", "--enable-threads"),
    "uwsgi-lazy": (*UWSGI, "-p", "2", "--threads", "2", "--enable-threads", "--lazy-apps"),
}


@pytest.mark.parametrize("server", SERVERS)
def test_workers_of_a_web_server_share_nothing_with_each_other(
    environ: dict[str, str], tmp_path: Path, server: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    words = [word.format(address=address) for word in SERVERS[server]]
    output = tmp_path / "server.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=tmp_path, env=environ, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ask(number: int) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{address}/?word={number}", timeout=60) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def answers() -> bool:
        assert process.poll() is None, output.read_text()
        try:
            return bool(ask(0))
        except OSError:
            return False

    try:
        wait_until(answers, "the server answers", 60)
        with ThreadPoolExecutor(8) as clients:
            told = list(clients.map(ask, range(32)))
    except Exception:
        print(output.read_text()[-8000:])
        raise
    finally:
        process.terminate()
        process.wait(30)
    assert all(one["own"] for one in told)
    ids = [task_id for one in told for task_id in one["ids"]]
    first = {task_id for one in told for task_id in one["first"]}
    assert len(ids) == len(set(ids)) == 32 * 9
    assert not first.intersection(ids)
    loaded = {one["pid"]: one["loaded"] for one in told}
    assert len(loaded) > 1, "several workers answered"
    if "lazy" in server:
        assert all(pid == by for pid, by in loaded.items())
        assert len(first) == 3 * len(loaded)
    else:
        assert set(loaded.values()).isdisjoint(loaded)
        assert len(first) == 3
