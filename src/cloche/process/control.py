"""The control socket of a launcher: one request a connection, JSON a line.

The client writes ``{"do": NAME, …}``. The launcher answers with any number of events, then
with ``{"done": …}`` or ``{"error": {"type", "what", "why", "fix"}}``. The socket is mode 0600
in a private directory, so whoever can connect is this user (or root).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from cloche.errors import ClocheError, NotRunningError, ProcessError, from_fields, to_fields

#: Its name in the run directory (see ``RunDirectory.socket_path``).
SOCKET = "control.sock"

Fields = dict[str, Any]
#: Tell the client something on the way. Never raises: the client may have gone.
Emit = Callable[[Fields], None]
Handler = Callable[[Fields, Emit], Awaitable[Fields]]

_LINE_MOST = 4 * 1024**2


class ControlServer:
    """Answers requests by ``handlers`` (by the name in ``do``) on the running loop."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind; a stale socket is replaced (the caller holds the run directory's lock)."""
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)  # never open to others, not even between bind and chmod
        try:
            self._server = await asyncio.start_unix_server(
                self._accept, self.path, limit=_LINE_MOST
            )
        finally:
            os.umask(before)

    async def close(self, patience: float = 2.0) -> None:
        """Take no more; those being answered get ``patience`` seconds. May be called twice."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self.path.unlink(missing_ok=True)
        if self._busy:
            await asyncio.wait(self._busy, timeout=patience)
        for task in self._busy:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._converse(reader, writer))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def emit(fields: Fields) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(fields).encode() + b"\n")

        try:
            emit(await self._answer(await reader.readline(), emit))
            await writer.drain()
        except (OSError, ValueError):
            pass  # it went away, or wrote what is no line
        finally:
            writer.close()

    async def _answer(self, line: bytes, emit: Emit) -> Fields:
        try:
            request = json.loads(line)
            handler = self._handlers[request["do"]]
        except (ValueError, KeyError, TypeError):
            error = ProcessError("the launcher does not know this request")
            return {"error": to_fields(error)}
        try:
            return {"done": await handler(request, emit)}
        except ClocheError as error:
            return {"error": to_fields(error)}
        except Exception as error:  # noqa: BLE001 (a fault of ours must not leave a client waiting)
            return {"error": to_fields(ProcessError(f"the launcher failed: {error!r}"))}


def call(
    path: Path,
    request: Mapping[str, Any],
    *,
    on_event: Callable[[Fields], None] = lambda event: None,
    timeout: float | None = None,
) -> Fields:
    """Ask the launcher behind ``path`` and return its answer.

    ``timeout`` is the longest silence in seconds, None for any. Raises NotRunningError where
    nobody listens or the launcher ended, and the error it answered with.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(dict(request)).encode() + b"\n")
        except OSError as error:
            raise NotRunningError(f"no launcher answers at {path}", why=str(error)) from error
        with sock.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            try:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise from_fields(answer["error"])
                    if "done" in answer:
                        return dict(answer["done"])
                    on_event(answer)
            except TimeoutError as error:
                raise ProcessError(
                    f"the launcher did not answer within {timeout:g} s",
                    fix="see its log, .cloche/logs/cloche.log",
                ) from error
    raise NotRunningError("the launcher ended before it had answered")
