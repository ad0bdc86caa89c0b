"""Run one of our web applications: taken ports told plainly, streams closed on stop."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from cloche.errors import PortTakenError, SettingsError
from cloche.settings.model import WebSettings


class Server(uvicorn.Server):
    """A server that says when it listens and closes event streams before it waits."""

    def __init__(
        self, config: uvicorn.Config, *, on_ready: Callable[[], object], on_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Streams never end by themselves: uvicorn would wait for them until its time-out.
        self._on_stop()
        await super().shutdown(sockets)


def make_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    on_ready: Callable[[], object] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    grace: int = 5,
) -> Server:
    """A server for ``app``; running transfers get ``grace`` seconds when it stops."""
    config = uvicorn.Config(
        app,
        host=listener.getsockname()[0],
        port=listener.getsockname()[1],
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=grace,
    )
    return Server(config, on_ready=on_ready, on_stop=on_stop)


def listen(settings: WebSettings, section: str) -> socket.socket:
    """A listening socket. Raises PortTakenError, or SettingsError for a host not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise _refused(error, settings, section) from None
    return listener


def _refused(error: OSError, settings: WebSettings, section: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        free = _next_free(settings.host, settings.port)
        return PortTakenError(
            f"Port {settings.port} is taken: another process listens on "
            f"{settings.host}:{settings.port}.",
            port=settings.port,
            free=free,
            why=f"{section}.port is {settings.port}.",
            fix=f"Stop that process, or set {section}.port to {free}, which is free.",
        )
    return SettingsError(
        f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.",
        fix=f"Set {section}.host to an address of this machine, {section}.port above 1023.",
    )


def _next_free(host: str, port: int) -> int:
    """The next port above ``port`` that nobody listens on; 0 when there is none near."""
    for candidate in range(port + 1, min(port + 100, 65535)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    return 0
