"""A started command with all its descendants: CPU time, memory, log, end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.guard import Guard, kill, members

_SAMPLE_EVERY = 0.5  # seconds between memory samples
_STOP_LIMIT = 5.0  # seconds from SIGTERM to SIGKILL
_MIB = 1024 * 1024


class Process:
    """The leader of a session of its own, and its session."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self._log = log
        self._ended = threading.Event()
        self._peak = 0.0
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    @property
    def session(self) -> int:
        """The leader's pid."""
        return self._popen.pid

    def running(self) -> bool:
        """Whether the leader is alive."""
        return self._popen.poll() is None

    def wait(self, limit: float) -> int:
        """The leader's exit code. Raises subprocess.TimeoutExpired."""
        return self._popen.wait(limit)

    def cpu(self) -> float:
        """CPU seconds so far of all its processes, children that ended and were reaped included."""
        total = 0.0
        for process in members(self.session):
            with contextlib.suppress(psutil.Error):
                total += sum(psutil.Process(process).cpu_times()[:4])
        return total

    def last_lines(self, count: int = 12) -> str:
        """The end of its output."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def memory(self) -> float:
        """The most resident memory seen so far, MiB, summed over the session.

        Pages that a fork shares count once for each process.
        """
        self._peak = max(self._peak, self._rss())
        return self._peak

    def watch_memory(self) -> None:
        """Sample the resident memory until it ends."""
        self._sampler.start()

    def stop(self, grace: float = _STOP_LIMIT) -> None:
        """SIGTERM, ``grace`` seconds, SIGKILL to all that is left of the session.

        Also of its descendants that made sessions of their own.
        """
        self._ended.set()
        descendants = self._descendants()
        if self.running():
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace)
        while members(self.session):
            kill(self.session)
            self._popen.poll()  # reaps the leader, which is a member until then
            time.sleep(0.01)
        self._popen.wait()
        for process in descendants:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil compares the start time: never a stranger

    def _descendants(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self.session).children(recursive=True))
        except psutil.Error:
            return []

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY):
            self.memory()

    def _rss(self) -> float:
        total = 0
        for process in members(self.session):
            with contextlib.suppress(psutil.Error):
                total += psutil.Process(process).memory_info().rss
        return total / _MIB


@contextmanager
def spawn(
    command: Sequence[str],
    guard: Guard,
    log: Path,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    grace: float = _STOP_LIMIT,
) -> Iterator[Process]:
    """The command running while the block does."""
    environment = {**os.environ, **(variables or {})}
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    guard.watch(popen.pid)
    process = Process(popen, log)
    try:
        yield process
    finally:
        process.stop(grace)
        guard.release(popen.pid)
