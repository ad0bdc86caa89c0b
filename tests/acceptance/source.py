"""A web server to download from: big files, dropped connections, on demand."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

#: Bytes written at a time.
_PIECE = 64 * 1024


def content(size: int, seed: int = 0) -> Iterator[bytes]:
    """``size`` bytes that differ from place to place, made without holding them."""
    block = b"".join(hashlib.sha256(f"{seed}-{n}".encode()).digest() for n in range(2048))
    sent = 0
    while sent < size:
        piece = block[sent % len(block) :][: min(_PIECE, size - sent)]
        yield piece
        sent += len(piece)


def digest(size: int, seed: int = 0) -> str:
    total = hashlib.sha256()
    for piece in content(size, seed):
        total.update(piece)
    return total.hexdigest()


class Source:
    """Serves ``/SIZE/name`` with Range; breaks the first ``drops`` transfers halfway.

    ``gate``, while cleared, holds every transfer after its first megabyte.
    """

    def __init__(self, drops: int = 0) -> None:
        self.drops = drops
        self.requests: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        source = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                source.answer(self)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def url(self, size: int, name: str = "file.bin") -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{size}/{name}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        size = int(request.path.split("/")[1])
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        self.requests.append(request.headers.get("Range", "whole"))
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(size - first))
        request.send_header("ETag", f'"v1-{size}"')
        request.send_header("Accept-Ranges", "bytes")
        if wanted:
            request.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        request.end_headers()
        last = self._breaks_at(first, size)
        with contextlib.suppress(OSError):  # the client went away
            self._send(request, first, size, last)
        if last is not None:
            request.close_connection = True
            request.connection.close()

    def _breaks_at(self, first: int, size: int) -> int | None:
        if self.drops == 0:
            return None
        self.drops -= 1
        return first + (size - first) // 2

    def _send(
        self, request: BaseHTTPRequestHandler, first: int, size: int, last: int | None
    ) -> None:
        sent = 0
        for piece in content(size):
            begin, end = sent, sent + len(piece)
            sent = end
            if end <= first:
                continue
            if begin > 1024**2:
                self.gate.wait(60)
            if last is not None and end > last:
                return
            request.wfile.write(piece[max(0, first - begin) :])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
