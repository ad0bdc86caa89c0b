"""sd_notify: ``READY=1`` and ``WATCHDOG=1`` in datagrams to ``NOTIFY_SOCKET``, and who hears them.

The protocol of sd_notify(3): newline-separated ``KEY=value`` in one datagram; a socket name
that begins with ``@`` is in Linux's abstract namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

_VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> bool:
    """Tell the supervisor (Cloche's or systemd), e.g. ``READY=1`` or ``STATUS=…``.

    False without a supervisor that listens. Never raises: being heard is a courtesy.
    """
    address = os.environ.get(_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        return False
    return True


class ReadinessListener:
    """The receiving end for one life of one process."""

    def __init__(self, path: Path) -> None:
        """Bind ``path`` (a stale socket there is replaced) and listen on the running loop."""
        self.path = path
        self.ready = asyncio.Event()
        #: The last value of each key received, e.g. ``STATUS``.
        self.state: dict[str, str] = {}
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(str(path))
            path.chmod(0o600)
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)

    @property
    def environment(self) -> dict[str, str]:
        """What the child needs in its environment."""
        return {_VARIABLE: str(self.path)}

    def close(self) -> None:
        """Stop listening. May be called twice."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _receive(self) -> None:
        try:
            message = self._socket.recv(8192)
        except (BlockingIOError, InterruptedError):
            return
        for line in message.decode(errors="replace").splitlines():
            key, separator, value = line.partition("=")
            if separator:
                self.state[key] = value
        if self.state.get("READY") == "1":
            self.ready.set()


def watchdog_period() -> float | None:
    """Seconds between two signs of life: half of what systemd waits. None if nobody waits."""
    try:
        usec = int(os.environ.get("WATCHDOG_USEC", ""))
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return usec / 2e6 if usec > 0 and pid == os.getpid() else None


class SystemdWatchdog:
    """Gives one, when it is due, each time it is asked to."""

    def __init__(self) -> None:
        self._period = watchdog_period()
        self._due = 0.0

    @property
    def period(self) -> float | None:
        """Seconds within which it must be asked; None: never."""
        return self._period

    def give(self) -> None:
        """The process does its work: tell systemd if it is time to."""
        now = time.monotonic()
        if self._period is not None and now >= self._due:
            self._due = now + self._period / 2
            notify("WATCHDOG=1")
