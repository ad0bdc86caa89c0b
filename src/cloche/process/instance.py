"""One life of a process: from its spawn to the last of its group."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from cloche.process import table
from cloche.process.identity import Identity
from cloche.process.spec import ProcessSpec, StopSignal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL = 0.05
#: What a service manager tells us, and not our children.
_NOT_INHERITED = frozenset(
    ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
)


def death_signal(spec: ProcessSpec) -> int | None:
    """What the kernel sends this process when the launcher dies (None: nothing)."""
    if sys.platform != "linux" or not spec.dies_with_launcher or not spec.stop_signals:
        return None
    return spec.stop_signals[0][0]


class ProcessInstance:
    """A running main process and the group it leads. Must be made in the loop's thread,
    and that thread must live as long as the launcher: the parent-death signal is sent when
    the *thread* that forked ends (prctl(2)).

    Raises OSError if the command cannot be started.
    """

    def __init__(
        self, spec: ProcessSpec, instance: str, environment: Mapping[str, str], output: int
    ) -> None:
        self.exited = asyncio.Event()
        self.code: int | None = None
        self._stop: asyncio.Task[None] | None = None
        self._popen = subprocess.Popen(
            list(spec.command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=spec.cwd,
            env=_environment(spec, instance, environment),
            start_new_session=True,
            # Only where needed: with it Python forks (3 ms at 20 MB, 13 ms at 150 MB)
            # instead of using vfork (0.4 ms); see docs/decisions/0002.
            preexec_fn=_die_with_parent(number) if (number := death_signal(spec)) else None,
        )
        self.identity = Identity.of_child(self._popen.pid, instance)
        on_exit(self._popen, self._reap)

    def signal(self, number: int) -> None:
        """Signal the main process. It is not reaped before ``exited``: the pid is its own."""
        if not self.exited.is_set():
            os.kill(self.identity.pid, number)

    def kill(self) -> None:
        """SIGKILL the whole group, at once."""
        self.identity.signal_group(signal.SIGKILL)

    async def stop(self, signals: tuple[StopSignal, ...], say: Callable[[str], None]) -> None:
        """Stop gracefully, then by force; returns once the group is gone.

        A second call joins the first.
        """
        if self._stop is None:
            self._stop = asyncio.create_task(self._escalate(signals, say))
        await asyncio.shield(self._stop)

    async def gone(self) -> None:
        """Wait until main process and group are gone (killed members take a moment)."""
        await self.exited.wait()
        for _ in range(100):
            if not self.identity.signal_group(0) or not table.members(self.identity.pid):
                return
            await asyncio.sleep(_POLL)

    async def _escalate(self, signals: tuple[StopSignal, ...], say: Callable[[str], None]) -> None:
        for number, wait in signals:
            self.signal(number)
            self.signal(signal.SIGCONT)  # a stopped process could not obey
            if await self._ends_within(wait):
                break
        if not self.exited.is_set():
            waited = sum(wait for _, wait in signals)
            say(f"did not stop within {waited:g} s: killed, with its group")
            self.kill()
        await self.gone()

    async def _ends_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.exited.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _reap(self) -> None:
        """The main process ended. Its group is killed while the zombie still holds the number."""
        self.kill()
        self.code = self._popen.wait()
        self.exited.set()


def describe_exit(code: int | None) -> str:
    """An exit code in words; negative is a signal's number."""
    if code is None:
        return "it has not ended"
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _environment(spec: ProcessSpec, instance: str, extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    return {
        "PYTHONUNBUFFERED": "1",  # lines as they are printed, not in blocks of 8 KiB
        **inherited,
        **spec.env,
        **extra,
        table.INSTANCE: instance,
        table.PROCESS: spec.name,
    }


def _die_with_parent(number: int) -> Callable[[], None]:
    """Runs in the child between fork and exec: nothing here may import or take a lock."""
    parent = os.getpid()
    prctl = _LIBC.prctl

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_kernel


def on_exit(popen: subprocess.Popen[bytes], callback: Callable[[], None]) -> None:
    """Call back once the child has ended, before it is reaped where the system lets us."""
    loop = asyncio.get_running_loop()
    try:
        pinned = os.pidfd_open(popen.pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        pinned = -1

    def fire() -> None:
        loop.remove_reader(pinned)
        os.close(pinned)
        callback()

    def look() -> None:
        if popen.poll() is None:
            loop.call_later(_POLL, look)
        else:
            callback()

    if pinned >= 0:
        loop.add_reader(pinned, fire)
    else:
        look()
