"""sd_notify: real datagram sockets."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from cloche.process.systemd import ReadinessListener, notify


def test_nobody_listens_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "relative/path")
    assert notify("READY=1") is False


def test_a_listener_hears_ready_and_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def listen() -> None:
        listener = ReadinessListener(tmp_path / "s")
        monkeypatch.setenv("NOTIFY_SOCKET", listener.environment["NOTIFY_SOCKET"])
        assert notify("STATUS=loading\nnonsense")
        assert notify("READY=1\nSTATUS=at = work")
        await asyncio.wait_for(listener.ready.wait(), 10)
        assert listener.state == {"READY": "1", "STATUS": "at = work"}
        listener.close()
        listener.close()
        assert not listener.path.exists()

    asyncio.run(listen())


def test_a_socket_left_by_a_killed_launcher_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(tmp_path / "s"))

    async def listen() -> None:
        ReadinessListener(tmp_path / "s").close()

    asyncio.run(listen())


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_systemds_abstract_socket_is_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"cloche-test-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
