"""A process for the tests: writes what happens to it to a ledger, one line each.

``actor.py NAME LEDGER [drain=SECONDS] [stubborn] [family] [escape] [notify=SECONDS] [silent]``
``family``: a child in the same group, without our environment;
``escape``: a grandchild in a session of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from cloche.process.systemd import notify

name, ledger, *words = sys.argv[1:]
options = dict(word.partition("=")[::2] for word in words)
stopping: list[int] = []  # an Event's lock may be held by what the signal interrupts


def write(what: str) -> None:
    with open(ledger, "a") as file:
        file.write(f"{name} {what} {os.getpid()}\n")


def on_term(number: int, frame: object) -> None:
    write(signal.Signals(number).name)
    if "stubborn" not in options:
        stopping.append(number)


signal.signal(signal.SIGTERM, on_term)
signal.signal(signal.SIGINT, on_term)
if "family" in options:
    child = subprocess.Popen(["sleep", "1000"], env={})
    with open(ledger, "a") as file:
        file.write(f"{name} child {child.pid}\n")
if "escape" in options:
    far = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(ledger, "a") as file:
        file.write(f"{name} escaped {far.pid}\n")
write("started")
print("hello from", name)
if "notify" in options:
    time.sleep(float(options["notify"]))
    notify("READY=1\nSTATUS=at work")
while not stopping:
    time.sleep(0.02)
deadline = time.monotonic() + float(options.get("drain", "0"))
while time.monotonic() < deadline:
    if "silent" not in options:
        print("draining")  # must not die of a broken pipe when the launcher is gone
    time.sleep(0.02)
write("stopped")
