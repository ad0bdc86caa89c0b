"""Many publishers at once, far from the server, with few connections: each task is sent once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cloche.testing import free_port
from tests.integration.transport.harness import ROOT, Bench

#: Calls that a program makes.
CALLS = 144

#: Seconds that each piece of data takes in each direction.
DELAY = 0.005


async def _slow_network(port: int, target: int, closing: threading.Event) -> None:
    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(DELAY)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", port):
        while not closing.is_set():  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.05)


@pytest.fixture
def far_port(bench: Bench) -> Iterator[int]:
    port, closing = free_port(), threading.Event()
    network = _slow_network(port, bench.broker.port, closing)
    thread = threading.Thread(target=asyncio.run, args=(network,))
    thread.start()
    yield port
    closing.set()
    thread.join()


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("threads", 2), ("threads", 0), ("loops", 2), ("gevent", 2), ("eventlet", 2)],
)
def test_each_call_is_one_message(bench: Bench, far_port: int, kind: str, limit: int) -> None:
    if kind in ("gevent", "eventlet"):
        pytest.importorskip(kind)
    url = f"{bench.scheme}://127.0.0.1:{far_port}/0"
    program = "tests.integration.transport.publishing_program"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", program, kind, url, str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    sent = done.stdout.split()
    arrived = [json.loads(one)["headers"]["id"] for one in bench.client.lrange("celery", 0, -1)]
    assert len(sent) == CALLS
    assert sorted(arrived) == sorted(sent)
