"""A real HTTP server on loopback whose files misbehave on demand."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

CHUNK = 64 * 1024


@dataclass
class File:
    """One resource and its faults. Lists are consumed, one entry per request."""

    body: bytes = b"hello"
    content_type: str = "application/octet-stream"
    etag: str | None = '"v1"'
    last_modified: str | None = None
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    #: After how many bytes of the reply the connection is cut.
    drops: list[int] = field(default_factory=list)
    #: Replies (status, headers) given before the file.
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    redirect: str | None = None
    content_range: str | None = None
    declared: int | None = None
    compressed: bool = False
    endless: bool = False
    #: Bytes per piece and seconds after each: a slow server.
    piece: int = CHUNK
    pause: float = 0.0
    #: (path, headers) as they came.
    requests: list[dict[str, str]] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.context:  # in the thread of this connection
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except OSError:  # the client does not trust us
                return
        super().finish_request(request, client_address)
        if self.context:
            with contextlib.suppress(OSError):
                request.unwrap()
            request.close()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own looks its name up, which is slow


class FileServer:
    """Serves ``files`` by path, over TLS if it has a ``certificate`` (and key) file.

    ``names`` are the hosts that TLS clients asked for (SNI), None where they named none.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.names: list[str | None] = []
        self.files: dict[str, File] = {}
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        if certificate:
            self._server.context = self._context(certificate)

    def add(self, path: str, file: File) -> str:
        """The URL under which that file now is."""
        self.files[path] = file
        return f"http://127.0.0.1:{self.port}{path}"

    def _context(self, certificate: tuple[Path, Path]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.sni_callback = lambda link, name, _: self.names.append(name)
        return context

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.close_connection = True
        file = self.owner.files.get(self.path.split("?")[0])
        if file is None:
            return self._head(404, {"Content-Length": "0"})
        file.requests.append({k.lower(): v for k, v in self.headers.items()})
        with self._counted(file), contextlib.suppress(OSError):  # the client went away
            self._serve(file)
        return None

    @contextmanager
    def _counted(self, file: File) -> Iterator[None]:
        with self.owner.lock:
            file.open_now += 1
            file.most_open = max(file.most_open, file.open_now)
        try:
            yield
        finally:
            with self.owner.lock:
                file.open_now -= 1

    def _serve(self, file: File) -> None:
        if file.redirect:
            return self._head(302, {"Location": file.redirect, "Content-Length": "0"})
        if file.refusals:
            status, headers = file.refusals.pop(0)
            return self._head(status, {"Content-Length": "0", **headers})
        if file.etag and self.headers.get("If-None-Match") == file.etag:
            return self._head(304, {"ETag": file.etag})
        if file.endless:
            self._head(200, {})
            while not self.owner.stopping.is_set():
                self.wfile.write(b"x" * CHUNK)
        return self._serve_body(file)

    def _serve_body(self, file: File) -> None:
        body = gzip.compress(file.body) if file.compressed else file.body
        headers = {"Content-Type": file.content_type}
        if file.etag:
            headers["ETag"] = file.etag
        if file.last_modified:
            headers["Last-Modified"] = file.last_modified
        if file.compressed:
            headers["Content-Encoding"] = "gzip"
        headers |= file.headers
        start = self._range_start(file)
        if start is not None and start >= len(body):
            return self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
        status = 200 if start is None else 206
        if start is not None:
            headers["Content-Range"] = (
                file.content_range or f"bytes {start}-{len(body) - 1}/{len(body)}"
            )
            body = memoryview(body)[start:]  # type: ignore[assignment]
        headers["Content-Length"] = str(file.declared or len(body))
        self._head(status, headers)
        return self._send(file, memoryview(body))

    def _range_start(self, file: File) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not match or not file.ranges or condition not in (None, file.etag, file.last_modified):
            return None
        return int(match[1])

    def _send(self, file: File, body: memoryview) -> None:
        if self.command == "HEAD":
            return
        end = file.drops.pop(0) if file.drops else len(body)
        for at in range(0, min(end, len(body)), file.piece):
            self.wfile.write(body[at : min(at + file.piece, end)])
            if file.pause and not file.released.is_set():
                self.owner.stopping.wait(file.pause)
            if self.owner.stopping.is_set():
                return

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()


class RawServer:
    """Answers the n-th connection with the bytes of ``answer(n, first byte asked for)``, and
    closes it: what no well-behaved server would send.
    """

    def __init__(self, answer: Callable[[int, int | None], bytes]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/file"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                number += 1
                with link, contextlib.suppress(OSError):
                    asked = re.search(rb"(?i)range: bytes=(\d+)-", link.recv(65536))
                    link.sendall(self._answer(number, int(asked[1]) if asked else None))
