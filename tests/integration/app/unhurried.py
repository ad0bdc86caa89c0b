"""A prefork worker whose pool never looks after its processes unless something happens."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from cloche.app import create_app
from cloche.settings import load
from cloche.worker.prefork import Pool

app = create_app("unhurried", load().settings)
_partial_read = Pool.on_partial_read


def on_partial_read(self: Any, job: Any, proc: Any) -> None:
    """A task that was written to a process that has exited goes to another one."""
    sys.stderr.write("given back\n")
    _partial_read(self, job, proc)


Pool.timers = {}  # the look every five seconds
Pool.on_partial_read = on_partial_read


@app.task(name="tasks.unhurried.pid")
def pid() -> int:
    return os.getpid()


@app.task(name="tasks.unhurried.close_early")
def close_early() -> int:
    """Close the pipe that tells the parent of the process's end (billiard.popen_fork), then go on
    for a while, as a process does whose memory has to be given back."""
    frame: Any = sys._getframe()
    while "child_w" not in frame.f_locals:
        frame = frame.f_back
    os.close(frame.f_locals["child_w"])
    time.sleep(0.3)
    return os.getpid()
