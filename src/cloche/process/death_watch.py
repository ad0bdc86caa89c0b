"""The launcher's side of the guard: starts it, keeps it alive, hands it the pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cloche.backoff import Backoff
from cloche.process.identity import Identity
from cloche.process.instance import on_exit
from cloche.process.run_directory import RunDirectory

#: Python without site-packages and without ``cloche/__init__``: an empty package of that
#: name, whose only use is to find ``cloche.process.guard``.
_BOOT = (
    "import sys, types; package = types.ModuleType('cloche'); "
    "package.__path__ = [sys.argv[1]]; sys.modules['cloche'] = package; "
    "from cloche.process.guard import main; main(sys.argv[2:])"
)
_FLAGS = ["-I", "-S"] if sys.platform == "linux" else ["-I"]  # psutil is a site-package
_PACKAGE = Path(__file__).parents[1]


class DeathWatch:
    """Keeps one guard running as long as the launcher does."""

    def __init__(self, run_directory: RunDirectory, say: Callable[[str], None]) -> None:
        self._directory = run_directory
        self._say = say
        self._pipes: dict[str, int] = {}
        self._backoff = Backoff(0.05, 4.0, 30.0)
        self._deaths = 0
        self._closing = False
        self._again: asyncio.TimerHandle | None = None
        self._channel: socket.socket | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The guard's pid while it runs."""
        return None if self._popen is None else self._popen.pid

    def start(self) -> None:
        """Start a guard. Both ends are close-on-exec: no child of ours ever holds ours."""
        launcher = Identity.own()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        directory = self._directory
        with theirs, (directory.logs / "guard.log").open("ab") as log:
            command = [sys.executable, *_FLAGS, "-c", _BOOT, str(_PACKAGE), str(directory.path)]
            command += [directory.instance, str(theirs.fileno())]
            command += [str(launcher.pid), repr(launcher.started), "cloche-guard"]
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
                pass_fds=(theirs.fileno(), directory.lock_fd),
            )
        self._channel = ours
        self._ended.clear()
        on_exit(self._popen, self._reap)
        for name, handle in self._pipes.items():
            self._tell(f"+{name}", handle)

    def hand_over(self, name: str, handle: int) -> None:
        """Give the guard a copy of the pipe that ``name`` prints into."""
        self._pipes[name] = handle
        self._tell(f"+{name}", handle)

    def take_back(self, name: str) -> None:
        """``name`` has ended."""
        if self._pipes.pop(name, None) is not None:
            self._tell(f"-{name}")

    async def close(self) -> None:
        """Dismiss the guard and wait until it has gone (and let go of the lock)."""
        self._closing = True
        if self._again is not None:
            self._again.cancel()
        if self._popen is None:
            return
        self._tell("bye")
        try:
            await asyncio.wait_for(self._ended.wait(), 5.0)
        except TimeoutError:
            self._popen.kill()
            await self._ended.wait()

    def _tell(self, line: str, *handles: int) -> None:
        if self._channel is not None:
            # A guard that has just died gets everything again with the next start().
            with contextlib.suppress(OSError):
                message = f"{line}\n".encode()
                if handles:
                    socket.send_fds(self._channel, [message], list(handles))
                else:
                    self._channel.send(message)

    def _reap(self) -> None:
        if self._popen is not None:
            self._popen.wait()
            self._popen = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._ended.set()
        if not self._closing:
            self._deaths += 1
            self._say("the guard died: starting a new one")
            delay = self._backoff.delay(self._deaths)
            self._again = asyncio.get_running_loop().call_later(delay, self._restart)

    def _restart(self) -> None:
        if self._closing:
            return
        try:
            self.start()
        except OSError as error:
            self._deaths += 1
            self._say(f"cannot start a guard: {error}")
            delay = self._backoff.delay(self._deaths)
            self._again = asyncio.get_running_loop().call_later(delay, self._restart)
