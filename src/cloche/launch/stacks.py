"""What the threads of a worker do, for a person to read: py-spy's word, else its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

from cloche.app.pulse import STACKS_SIGNAL
from cloche.process.pulse import Pulse, pulse_path

#: Seconds that each way may take.
_PATIENCE = 5.0


def dump_stacks(directory: Path, pulse: Pulse, *, stopped: bool = False) -> tuple[Path, str]:
    """Write the stacks of all its threads into a file; the file and what is in it.

    Empty if neither py-spy (not installed, not allowed) nor the worker itself wrote anything.
    A ``stopped`` worker is made to go on for its own word. Blocks for some seconds.
    """
    target = directory / "stacks" / f"{pulse.name}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    target.parent.mkdir(mode=0o700, exist_ok=True)
    text = _py_spy(pulse.pid) or _own_word(directory, pulse, stopped=stopped)
    target.write_text(text)
    return target, text


def _py_spy(pid: int) -> str:
    program = shutil.which("py-spy")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _own_word(directory: Path, pulse: Pulse, *, stopped: bool) -> str:
    """faulthandler's, which writes whatever the interpreter does (app/pulse.py registers it)."""
    path = pulse_path(directory, pulse.node, ".stacks")
    before = _size(path)
    if before is None or not pulse.identity.signal(STACKS_SIGNAL):
        return ""
    if stopped:
        pulse.identity.signal(signal.SIGCONT)
    deadline = time.monotonic() + _PATIENCE
    size = before
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = _size(path) or 0
        if now == size > before:  # it has ended writing
            break
        size = now
    return path.read_text(errors="replace")[before:]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
