"""The guard: a small process that outlives the launcher by just long enough to clean up.

It waits on a socket whose other end only the launcher holds; the end of file is the
launcher's death, of whatever kind. Then it stops everything from the state file, in order,
and writes what the children print meanwhile to their log files (the launcher has handed it
the reading ends of their pipes, so that nobody dies of SIGPIPE while draining).

Runs on the standard library alone (psutil where there is no /proc), in a session of its
own. The run directory's lock is open in it: the next launcher waits until it is done.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from cloche.process.identity import Identity
from cloche.process.record import RunRecord
from cloche.process.stopping import stop_in_order

#: How often to look at the launcher besides (a forked copy of it may hold the socket open).
_LOOK_INTERVAL = 5.0
_CHUNK = 64 * 1024
#: Most bytes of one process's output that are kept while it is being stopped.
_DRAIN_MOST = 16 * 1024**2


class GuardPipe:
    """What the launcher tells the guard: ``+NAME`` with a pipe, ``-NAME``, ``bye``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._text = b""
        self._handles: list[int] = []
        self.pipes: dict[str, int] = {}
        self.dismissed = False

    def wait(self, launcher: Identity) -> None:
        """Return when the launcher has died, or has dismissed us (``dismissed``)."""
        while not self.dismissed:
            readable, _, _ = select.select([self._sock], [], [], _LOOK_INTERVAL)
            if readable and not self._receive():
                return
            if not readable and not launcher.alive():
                return

    def _receive(self) -> bool:
        try:
            data, handles, _, _ = socket.recv_fds(self._sock, 4096, 16)
        except ConnectionError:
            return False
        self._handles += handles
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._obey(line.decode())
        return bool(data)

    def _obey(self, line: str) -> None:
        if line == "bye":
            self.dismissed = True
            return
        name = line[1:]
        old = self.pipes.pop(name, None)
        if old is not None:
            os.close(old)
        if line.startswith("+"):
            self.pipes[name] = self._handles.pop(0)


class Drain:
    """Empties the children's pipes into their log files."""

    def __init__(self, pipes: dict[str, int], logs: Path) -> None:
        self._names = {handle: name for name, handle in pipes.items()}
        self._logs = logs
        self._written: dict[str, int] = {}

    def pause(self, seconds: float) -> None:
        """Let ``seconds`` pass, reading meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._names:
                time.sleep(left)
                return
            for handle in select.select(list(self._names), [], [], left)[0]:
                self._read(handle)

    def _read(self, handle: int) -> None:
        data = os.read(handle, _CHUNK)
        name = self._names[handle]
        if not data:
            os.close(handle)
            del self._names[handle]
            return
        written = self._written[name] = self._written.get(name, 0) + len(data)
        if written <= _DRAIN_MOST:
            try:
                with (self._logs / f"{name}.log").open("ab") as log:
                    log.write(data)
            except OSError:
                self._written[name] = _DRAIN_MOST  # disk full: keep emptying, stop writing


def say(text: str) -> None:
    """A line in guard.log, which is our standard output."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


def clean_up(directory: Path, instance: str, drain: Drain) -> None:
    """Stop all of the run, in order, and remove its state."""
    state = directory / "state.json"
    record = RunRecord.read(state)
    mine = record is not None and record.instance == instance
    children = record.children if record is not None and mine else ()
    stop_in_order(children, instance, say=say, pause=drain.pause, launcher_died=True)
    drain.pause(0.05)
    if mine:
        state.unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """``DIRECTORY INSTANCE SOCKET-FD LAUNCHER-PID LAUNCHER-STARTED``"""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    directory, instance = Path(arguments[0]), arguments[1]
    channel = GuardPipe(socket.socket(fileno=int(arguments[2])))
    channel.wait(Identity(int(arguments[3]), float(arguments[4])))
    if channel.dismissed:
        return
    say(f"the launcher (pid {arguments[3]}) died: stopping what it started")
    try:
        clean_up(directory, instance, Drain(channel.pipes, directory / "logs"))
    except Exception as error:  # noqa: BLE001 (nobody else would tell)
        say(f"clean-up failed: {error!r}")
        sys.exit(1)
    say("nothing is left")
