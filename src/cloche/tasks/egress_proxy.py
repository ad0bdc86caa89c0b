"""The guard for programs that are not ours: an HTTP proxy on loopback that asks it.

Understands CONNECT (RFC 9110 section 9.3.6) and requests in absolute form (RFC 9112
section 3.2.2), one per connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from ipaddress import ip_address
from typing import Self

import httpx2

from cloche.errors import EgressRefusedError
from cloche.tasks.egress import EgressGuard, ascii_host

_HEAD = 64 * 1024
_PIECE = 64 * 1024
#: Headers between a client and its proxy, which end here.
_HOP = (b"proxy-", b"connection:", b"keep-alive:")


class EgressProxy:
    """Serves while its ``async with`` block runs; ``url`` is what the program must use.

    ``refused`` is the last refusal: programs only see a status 403.
    """

    def __init__(self, guard: EgressGuard, *, connect_timeout: float) -> None:
        self._guard = guard
        self._timeout = connect_timeout
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.refused: EgressRefusedError | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        link = asyncio.ensure_future(self._serve(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._forward(head, reader, writer)
        except EgressRefusedError as error:
            self.refused = error
            await _answer(writer, "403 Forbidden", error.what)
        except TimeoutError:
            await _answer(writer, "504 Gateway Timeout", "no answer in time")
        except (ValueError, asyncio.LimitOverrunError):
            await _answer(writer, "400 Bad Request", "not a proxy request")
        except (OSError, asyncio.IncompleteReadError) as error:
            await _answer(writer, "502 Bad Gateway", str(error))
        finally:
            writer.close()

    async def _forward(self, head: bytes, reader: StreamReader, writer: StreamWriter) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        if method == "CONNECT":
            url = self._guard.check_url(f"https://{target}")
            upstream = await self._connect(url)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            url = self._guard.check_url(target)
            upstream = await self._connect(url)
            upstream[1].write(_origin_form(method, url, head))
        await _relay((reader, writer), upstream)

    async def _connect(self, url: httpx2.URL) -> tuple[StreamReader, StreamWriter]:
        """A connection to the first checked address that answers."""
        port = url.port or (443 if url.scheme == "https" else 80)
        failure: Exception = OSError("no address")
        async with asyncio.timeout(self._timeout):
            addresses = await self._guard.addresses(ascii_host(url), port)
        for address in addresses:
            try:
                async with asyncio.timeout(self._timeout):
                    return await asyncio.open_connection(str(ip_address(address)), port)
            except OSError as error:  # TimeoutError is one
                failure = error
        raise failure


def _origin_form(method: str, url: httpx2.URL, head: bytes) -> bytes:
    lines = head.split(b"\r\n")[1:-2]
    kept = [line for line in lines if not line.lower().startswith(_HOP)]
    first = f"{method} {url.raw_path.decode('ascii')} HTTP/1.1".encode()
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


async def _relay(
    client: tuple[StreamReader, StreamWriter], server: tuple[StreamReader, StreamWriter]
) -> None:
    """Carry bytes both ways until the server or both have finished."""
    try:
        upward = asyncio.ensure_future(_pump(client[0], server[1]))
        try:
            await _pump(server[0], client[1])
        finally:
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)
    finally:
        server[1].close()


async def _pump(source: StreamReader, target: StreamWriter) -> None:
    while data := await source.read(_PIECE):
        target.write(data)
        await target.drain()
    with contextlib.suppress(OSError):
        if target.can_write_eof():
            target.write_eof()


async def _answer(writer: StreamWriter, status: str, text: str) -> None:
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        await writer.drain()
