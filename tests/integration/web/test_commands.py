"""``cloche service`` and ``cloche dashboard`` as processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from cloche.testing import free_port

_COMMANDS = ("service", "dashboard")


@contextmanager
def _started(
    command: str, port: int, url: str, directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(directory / "notify"))
        supervisor.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-m", "cloche", command],
            env=_environ(command, port, url, directory),
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert supervisor.recv(100) == b"READY=1"
            yield process
        finally:
            process.kill()
            process.communicate()


def _environ(command: str, port: int, url: str, directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        "CLOCHE_BROKER__URL": url,
        "CLOCHE_RUN_DIR": str(directory / "run"),
        f"CLOCHE_{command.upper()}__PORT": str(port),
        "NOTIFY_SOCKET": str(directory / "notify"),
    }


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_tells_when_it_listens_and_stops_in_order(
    command: str, number: signal.Signals, broker_url: str, tmp_path: Path
) -> None:
    port = free_port()
    with _started(command, port, broker_url, tmp_path) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/healthz").status_code == 200
            ready = client.get("/readyz")
            assert ready.status_code == 200, ready.text
            with client.stream("GET", "/live") as stream:
                next(stream.iter_lines())
                process.send_signal(number)
                said = process.communicate(timeout=10)[0]
        assert process.returncode == 0
        assert said == b""


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_taken_port_ends_it_with_4_and_no_traceback(
    command: str, broker_url: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "cloche", command],
            env=_environ(command, port, broker_url, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 4
    assert f"Port {port} is taken" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wider_bind_without_a_token_ends_with_2(broker_url: str, tmp_path: Path) -> None:
    environ = _environ("dashboard", free_port(), broker_url, tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "cloche", "dashboard"],
        env={**environ, "CLOCHE_DASHBOARD__HOST": "0.0.0.0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert "dashboard.token" in ended.stderr


def test_the_dashboard_starts_without_what_it_does_not_use(tmp_path: Path) -> None:
    """Its start pays for what it uses: no FastAPI, no Alembic (docs/decisions/0045)."""
    code = "import sys, cloche.web.dashboard.app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.split()
    assert not {"fastapi", "alembic", "httpx2", "psycopg"} & set(loaded)
