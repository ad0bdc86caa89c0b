"""Run one of our web applications: taken ports told plainly, streams closed on stop."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from cloche.errors import PortTakenError, SettingsError
from cloche.settings.model import WebSettings
from cloche.web.auth import check_exposure


class WebServer(uvicorn.Server):
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

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT. uvicorn would raise the signal once more afterwards:
        a stop in good order must exit with 0, not die of the signal."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops; a second one does not wait for running transfers."""
        self.force_exit = self.should_exit
        self.should_exit = True


def make_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    on_ready: Callable[[], object] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    grace: int = 5,
) -> WebServer:
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
    return WebServer(config, on_ready=on_ready, on_stop=on_stop)


def serve(
    create: Callable[[], Starlette],
    settings: WebSettings,
    section: str,
    *,
    on_ready: Callable[[], object],
) -> None:
    """Run what ``create`` makes until SIGTERM or SIGINT; ``on_ready`` once it listens.

    The port is taken first: a wrong one is told at once. Raises PortTakenError,
    SettingsError and what ``create`` raises.
    """
    check_exposure(settings, section)
    with listen(settings, section) as listener:
        app = create()
        server = make_server(app, listener, on_ready=on_ready, on_stop=app.state.close)
        server.run([listener])


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
