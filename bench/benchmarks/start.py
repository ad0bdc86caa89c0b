"""How long until work is done: the first round finds caches cold, the later ones warm."""

from __future__ import annotations

import http.client
import time

from bench.errors import BenchError
from bench.figures import Figures
from bench.processes import spawn
from bench.server import free_port
from bench.stage import Stage

_POLL = 0.02  # seconds


def measure(stage: Stage) -> Figures:
    """Seconds from the worker's command to the first line of a job that waited."""
    stage.publish("one", range(1))
    began = time.monotonic()
    with stage.workers() as workers:
        stage.wait(stage.marks.begun, workers)
    return _figures(stage, stage.marks.first_start() - began)


def measure_page(stage: Stage) -> Figures:
    """Seconds from the command until its page answers 200.

    Runs in the contestant's home, which is kept: later rounds find what the first one made.
    """
    contestant, home = stage.case.contestant, stage.case.home
    port = free_port()
    values = {"port": port, "other_port": free_port(), "home": home}
    command = contestant.command(stage.case.setting, **values)
    began = time.monotonic()
    log = stage.folder / "up.log"
    variables = dict(contestant.variables)
    with spawn(command, stage.guard, log, variables, home, contestant.grace) as process:
        while not _answers(port, contestant.ready):
            if not process.running() or time.monotonic() - began > stage.case.deadline:
                raise BenchError(f"never ready\n{process.last_lines()}")
            time.sleep(_POLL)
        return _figures(stage, time.monotonic() - began)


def _figures(stage: Stage, seconds: float) -> Figures:
    return {"cold_s" if stage.case.round == 1 else "warm_s": seconds}


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
