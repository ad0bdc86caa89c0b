"""The ordered stop of processes that are not our children: for the guard and for reclaiming.

Round by round of the stop order: signals one after the other to the main processes, SIGKILL
to what is left of their groups; at the very end to everything that carries the instance.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cloche.process import table
from cloche.process.identity import Identity
from cloche.process.record import ChildRecord
from cloche.process.spec import StopSignal

_TICK = 0.05
_UNKNOWN: tuple[StopSignal, ...] = ((signal.SIGTERM, 10.0),)

Say = Callable[[str], None]
#: Let this many seconds pass (the guard drains the children's output meanwhile).
Pause = Callable[[float], None]


@dataclass(slots=True)
class _Victim:
    """A main process on its way out."""

    name: str
    identity: Identity
    signals: list[StopSignal]
    already: int | None
    deadline: float = field(default=0.0)

    def step(self, say: Say) -> bool:
        """Do what is due now; True once the main process and its group are gone."""
        if not self.identity.alive():
            self.identity.signal_group(signal.SIGKILL)
            return True
        if time.monotonic() >= self.deadline:
            self._escalate(say)
        return False

    def _escalate(self, say: Say) -> None:
        if not self.signals:
            say(f"{self.name} (pid {self.identity.pid}) did not stop: killed")
            self.identity.signal_group(signal.SIGKILL)
            self.deadline = time.monotonic() + 1.0
            return
        number, wait = self.signals.pop(0)
        self.deadline = time.monotonic() + wait
        if number == self.already:
            self.already = None  # the kernel has sent it; twice may mean "faster" to it
        else:
            say(f"{self.name} (pid {self.identity.pid}): {signal.Signals(number).name}")
            self.identity.signal(number)
        self.identity.signal(signal.SIGCONT)


def stop_in_order(
    children: Iterable[ChildRecord],
    instance: str,
    *,
    say: Say,
    pause: Pause = time.sleep,
    launcher_died: bool = False,
) -> None:
    """Stop all of a run, workers before what they need, and wait until it is gone.

    ``launcher_died``: the kernel has already sent each ``death_signal``.
    """
    recorded = tuple(children)
    for number in sorted({child.stop_order for child in recorded}):
        victims: list[_Victim] = []
        for child in recorded:
            if child.stop_order == number:
                victims += _victims(child, instance, launcher_died=launcher_died)
        while victims := [victim for victim in victims if not victim.step(say)]:
            pause(_TICK)
    kill_carriers(instance, say=say, pause=pause)


def _victims(child: ChildRecord, instance: str, *, launcher_died: bool) -> list[_Victim]:
    already = child.death_signal if launcher_died else None
    return [
        _Victim(child.name, main, list(child.stop_signals or _UNKNOWN), already)
        for main in _mains(child, instance)
    ]


def _mains(child: ChildRecord, instance: str) -> tuple[Identity, ...]:
    """The recorded main process; else session leaders of its name.

    The second case is a launcher killed between a spawn and its record. A grandchild in a
    session of its own looks the same and is asked to stop in the same way.
    """
    if child.identity is not None:
        if child.identity.alive():
            return (child.identity,)
        child.identity.signal_group(signal.SIGKILL)
    return tuple(
        Identity(found.row.pid, found.row.started, instance)
        for found in table.carriers(instance)
        if found.name == child.name and found.row.pid == found.row.session
    )


def kill_carriers(
    instance: str,
    *,
    name: str | None = None,
    say: Say = lambda text: None,
    pause: Pause = time.sleep,
    patience: float = 5.0,
) -> None:
    """SIGKILL everything (of process ``name``) that carries the instance, until none is left.

    Looks again after each round, since the found may
    have forked meanwhile; gives up after ``patience`` seconds (uninterruptible sleep).
    """
    deadline = time.monotonic() + patience
    told: set[int] = set()
    while time.monotonic() < deadline:
        found = [
            carrier.row for carrier in table.carriers(instance) if name in (None, carrier.name)
        ]
        if not found:
            return
        for row in found:
            if row.pid not in told:
                told.add(row.pid)
                say(f"killed what was left: pid {row.pid}")
            Identity(row.pid, row.started).signal(signal.SIGKILL)
        pause(_TICK / 5)
