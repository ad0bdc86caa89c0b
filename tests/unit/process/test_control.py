"""The control socket: requests, events, errors, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloche.errors import BrokerError, NotRunningError, PortTakenError, ProcessError
from cloche.process.control import ControlServer, Emit, Fields, call


async def echo(request: Fields, emit: Emit) -> Fields:
    emit({"event": 1})
    await asyncio.sleep(0)
    return {"got": request["word"]}


async def taken(request: Fields, emit: Emit) -> Fields:
    raise PortTakenError("port 1 is taken", port=1, free=2, why="by pid 3", fix="use 2")


async def broken(request: Fields, emit: Emit) -> Fields:
    raise RuntimeError("a fault of ours")


def served(path: Path, play: Callable[[], Any]) -> Any:
    """What ``play`` returns, run in a thread while the socket is served."""

    async def whole() -> Any:
        server = ControlServer(path, {"echo": echo, "taken": taken, "broken": broken})
        await server.start()
        try:
            return await asyncio.to_thread(play)
        finally:
            await server.close()

    return asyncio.run(whole())


def test_a_request_is_answered_after_its_events(tmp_path: Path) -> None:
    path = tmp_path / "s"
    events: list[Fields] = []

    def play() -> Fields:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        return call(path, {"do": "echo", "word": "é"}, on_event=events.append)

    assert served(path, play) == {"got": "é"}
    assert events == [{"event": 1}]
    assert not path.exists()


def test_an_error_arrives_as_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(PortTakenError) as caught:
        served(path, lambda: call(path, {"do": "taken"}))
    assert str(caught.value) == "port 1 is taken\n  why: by pid 3\n  fix: use 2"
    assert caught.value.exit_code == 4
    assert not isinstance(caught.value, BrokerError)
    with pytest.raises(ProcessError, match="a fault of ours"):
        served(path, lambda: call(path, {"do": "broken"}))
    with pytest.raises(ProcessError, match="does not know"):
        served(path, lambda: call(path, {"do": "dance"}))


def test_rubbish_and_a_client_that_leaves_harm_nobody(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def play() -> Fields:
        for rubbish in (b"", b"\n", b"{}\n", b"[1]\n", b"\xff\n", b"x" * 100_000):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(rubbish)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(json.dumps({"do": "echo", "word": 1}).encode() + b"\n")
        return call(path, {"do": "echo", "word": 2})

    assert served(path, play) == {"got": 2}


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        call(tmp_path / "s", {"do": "echo"})
