"""Real servers for the tests of the web layer: ours in a thread, workers as processes, and a
source to download from that can be slow and can break."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import httpx2

from cloche.settings.model import WebSettings
from cloche.web.server import WebServer, listen, make_server
from tests.commands import Forked

T = TypeVar("T")


@dataclass
class Running:
    """A server of ours that listens."""

    server: WebServer
    url: str
    thread: threading.Thread

    def stop(self, deadline: float = 10.0) -> float:
        """Stop as a signal would; how many seconds it took."""
        began = time.monotonic()
        self.server.should_exit = True
        self.thread.join(deadline)
        assert not self.thread.is_alive(), "the server did not stop"
        return time.monotonic() - began


@contextmanager
def serving(app: Any, settings: WebSettings) -> Iterator[Running]:
    """``app`` behind the real server on the port of ``settings``."""
    listener = listen(settings, "service")
    ready = threading.Event()
    server = make_server(app, listener, on_ready=ready.set, on_stop=app.state.close)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    assert ready.wait(20), "the server did not start"
    host, port = listener.getsockname()[:2]
    running = Running(server, f"http://{host}:{port}", thread)
    try:
        yield running
    finally:
        running.stop()
        listener.close()


@contextmanager
def working(environ: dict[str, str], log: Path, *options: str) -> Iterator[Forked]:
    """A worker of the sample application, as a process of its own."""
    words = ["-m", "celery", "-A", "tests.integration.web.sample", "worker"]
    words += ["--loglevel", "INFO", "--without-gossip", "--without-mingle", *options]
    root = Path(__file__).parents[3]
    worker = Forked(words, log, directory=root, environ={**os.environ, **environ})
    worker.ready = " ready."
    with worker:
        yield worker
        worker.stop(10)


@dataclass
class Source:
    """A file server: ``rate`` bytes/s (0: as fast as it goes); counts its requests."""

    rate: float = 0.0
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    types: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, size: int, content_type: str = "application/zip") -> str:
        """Make a file of ``size`` bytes; its address."""
        seed = hashlib.sha256(name.encode()).digest()
        self.files[name] = (seed * (size // len(seed) + 1))[:size]
        self.types[name] = content_type
        return f"{self.url}/{quote(name)}"

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()


@contextmanager
def source() -> Iterator[Source]:
    """A ``Source`` on a free loopback port."""
    served = Source()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            name = unquote(self.path.lstrip("/"))
            served.requests.append(f"{self.command} {name}")
            content = served.files.get(name)
            if content is None:
                self.send_error(404)
                return
            first = int((self.headers.get("range") or "bytes=0-")[6:].split("-")[0])
            self.send_response(206 if first else 200)
            self.send_header("content-length", str(len(content) - first))
            self.send_header("content-type", served.types[name])
            self.send_header("accept-ranges", "bytes")
            self.send_header("etag", f'"{served.sha256(name)[:16]}"')
            if first:
                self.send_header(
                    "content-range", f"bytes {first}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if body:
                self._send(content[first:])

        def _send(self, content: bytes) -> None:
            step = max(1, int(served.rate / 20)) if served.rate else len(content)
            for at in range(0, len(content), max(1, step)):
                try:
                    self.wfile.write(content[at : at + step])
                except OSError:
                    return
                if served.rate:
                    time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            """Silent: the tests read ``requests``."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def events_of(client: httpx2.Client, path: str) -> Generator[tuple[str, str], None, None]:
    """(event, data) of a stream of server-sent events, until it ends."""
    with client.stream("GET", path, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        name, data = "", []
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            elif not line and name:
                yield name, "\n".join(data)
                name, data = "", []
