"""Handlers of signals take no lock that the code they interrupt may hold."""

from __future__ import annotations

import subprocess
import sys

_AGAIN = """
import os, signal, threading
from celery import Celery, signals
from cloche.app.lifecycle import connect_lifecycle
from cloche.worker.recycling import unwanted

connect_lifecycle(Celery("it"))
handled = 0

def handler(number, frame):
    global handled
    handled += 1
    signals.worker_shutting_down.send(sender="it", sig="SIGTERM", how="Warm", exitcode=0)

signal.signal(signal.SIGTERM, handler)
with signals.worker_shutting_down.lock:  # as a handler that was interrupted holds it
    os.kill(os.getpid(), signal.SIGTERM)
assert handled == 1 and unwanted.is_set()
assert not any(isinstance(one, type(threading.Lock())) for one in vars(unwanted).values())
print("through")
"""


def test_a_second_sigterm_in_the_middle_of_the_first_one_does_not_wait_for_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _AGAIN], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.split() == ["through"], ended.stderr
