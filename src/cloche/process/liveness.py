"""Whether the processes of a run directory live: asked of their pulses alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cloche.process.pulse import Pulse, pulses
from cloche.records import Health


def liveness(
    directory: Path, name: str | None = None, *, ready: bool = False
) -> tuple[Health, ...]:
    """A verdict on each process here that has a pulse, or on the one of that ``name``.

    ``ready``: connected to the broker too. Asks neither the processes nor the broker.
    """
    found = [pulse for pulse in pulses(directory) if name in (None, pulse.name, pulse.node)]
    return tuple(_verdicts(found, directory, name, ready))


def _verdicts(
    found: list[Pulse], directory: Path, name: str | None, ready: bool
) -> Iterator[Health]:
    if not found:
        who = f"no worker {name}" if name else "no worker and no scheduler"
        yield Health("pulse", False, f"{who} has a pulse in {directory}")
    for pulse in found:
        trouble = pulse.trouble()
        if trouble is None and ready and not pulse.connected:
            trouble = "it has no connection to the broker"
        yield Health(label(pulse), trouble is None, trouble or doing(pulse))


def label(pulse: Pulse) -> str:
    """What checks call it."""
    return pulse.name if pulse.pool == "beat" else f"worker {pulse.name}"


def doing(pulse: Pulse) -> str:
    """What it does, in words."""
    if pulse.pool == "beat":
        return f"its loop turns (pid {pulse.pid})"
    if not pulse.connected:
        return "waits for the broker"
    return f"{pulse.active} of {pulse.slots} slots busy, consumes {', '.join(pulse.queues)}"
