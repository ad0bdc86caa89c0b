"""Leaves nothing behind: ends every session it was told of when its standard input closes.

The harness starts one and writes ``+PID`` or ``-PID`` lines. Its end, kill -9 included, closes
the pipe. The folder given as argument goes too: all of the harness's files are in it.
Every server and worker is started as the leader of a session of its own, so that its children
are found even after it died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil


def members(session: int) -> list[int]:
    """The processes of a session, its leader's pid being its number."""
    found = []
    for process in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process) == session:
                found.append(process)
    return found


def kill(session: int) -> None:
    """Kill all processes of a session."""
    for process in members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


class Guard:
    """The harness's end of the pipe."""

    def __init__(self, pipe: IO[str], scratch: Path) -> None:
        self._pipe = pipe
        self.scratch = scratch  # an empty folder, removed with its contents at the end

    def watch(self, session: int) -> None:
        """From now on, this session ends with the harness."""
        self._write(f"+{session}\n")

    def release(self, session: int) -> None:
        """This session has ended; its number may be another's soon."""
        self._write(f"-{session}\n")

    def _write(self, line: str) -> None:
        self._pipe.write(line)
        self._pipe.flush()


@contextmanager
def guarding() -> Iterator[Guard]:
    """A guard while the block runs."""
    scratch = tempfile.mkdtemp(prefix="cloche-bench-")
    command = [sys.executable, __file__, scratch]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        yield Guard(process.stdin, Path(scratch))


def main() -> None:
    """Keep the list until the pipe closes, then end what is on it."""
    watched: set[int] = set()
    for line in sys.stdin:
        session = int(line)
        (watched.add if session > 0 else watched.discard)(abs(session))
    for session in watched:
        kill(session)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
