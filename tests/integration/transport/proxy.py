"""A TCP proxy that can be cut, or fall silent while its connections stay open."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards ``port`` to ``target`` on the loopback."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._silent: set[socket.socket] = set()
        self._cuts: Callable[[bytes], bool] | None = None
        self._doomed: set[socket.socket] = set()
        self._near: set[socket.socket] = set()
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def silence(self) -> None:
        """Half-open: connections there are now pass nothing any more; new ones work."""
        with self._lock:
            self._silent |= set(self._pairs)

    def lead_to(self, target: int) -> None:
        """Forward new connections to another port."""
        self._target = target

    def cut_replies(self, commands: Callable[[bytes], bool]) -> None:
        """From now on, close a connection when the server answers such a command, unheard.

        ``commands`` is asked about each piece of data a client sends.
        """
        with self._lock:
            self._cuts = commands

    def cut(self) -> None:
        """Close all connections there are now."""
        with self._lock:
            for end in list(self._pairs):
                self._drop(end)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=5)
        self.cut()
        self._listener.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(timeout=0.05):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket):
                        self._forward(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        self._near.add(near)
        for end, other in ((near, far), (far, near)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket) -> None:
        if end not in self._pairs:
            return
        try:
            data = end.recv(65536)
            if end in self._silent:
                if not data:
                    self._selector.unregister(end)  # the other side learns nothing
                return
            if not data or end in self._doomed:
                self._drop(end)
                return
            if self._cuts and end in self._near and self._cuts(data):
                self._doomed.add(self._pairs[end])  # its answer is the end
            self._pairs[end].sendall(data)
        except OSError:
            self._drop(end)

    def _drop(self, end: socket.socket) -> None:
        for one in (end, self._pairs.pop(end, None)):
            if one is not None:
                self._pairs.pop(one, None)
                for marked in (self._silent, self._doomed, self._near):
                    marked.discard(one)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                one.close()
