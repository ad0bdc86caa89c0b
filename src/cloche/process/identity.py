"""Which process it is: a pid alone says nothing, since pids come round again."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

from cloche.process import table


@dataclass(frozen=True, slots=True)
class Identity:
    """A pid, when that process started, and the run (instance) it belongs to.

    ``started`` is in seconds: since boot on Linux, where it is exact and a changed clock
    cannot move it (psutil's ``create_time`` adds the boot time, which every clock step
    shifts); Unix time elsewhere. Compare it, do not show it.
    """

    pid: int
    started: float
    instance: str = ""

    @classmethod
    def of(cls, pid: int, instance: str = "") -> Identity | None:
        """The identity of a live process, None if there is none (or only a zombie)."""
        row = table.row(pid)
        return None if row is None else cls(pid, row.started, instance)

    @classmethod
    def of_child(cls, pid: int, instance: str = "") -> Identity:
        """The identity of a child not yet reaped, which may have ended already."""
        row = table.row(pid, zombie=True)
        return cls(pid, -1.0 if row is None else row.started, instance)

    @classmethod
    def own(cls, instance: str = "") -> Identity:
        return cls.of_child(os.getpid(), instance)

    def alive(self) -> bool:
        """Whether this very process still runs; another one under its pid does not count."""
        row = table.row(self.pid)
        return row is not None and row.started == self.started

    def signal(self, number: int) -> bool:
        """Send a signal to this very process. False when it is gone.

        A pidfd pins the process between the check and the signal (Linux 5.3 and newer).
        """
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            try:
                pinned = os.pidfd_open(self.pid)
            except ProcessLookupError:
                return False
            except OSError:
                return self._signal_by_pid(number)
            try:
                if not self.alive():
                    return False
                signal.pidfd_send_signal(pinned, number)
            except ProcessLookupError:
                return False
            finally:
                os.close(pinned)
            return True
        return self._signal_by_pid(number)

    def leads(self) -> bool:
        """Whether the group of this pid is (or was) this process's.

        While one member lives, the kernel does not hand the number out again; a leader of
        another start time therefore means that the group is somebody else's.
        """
        leader = table.row(self.pid)
        return leader is None or leader.started == self.started

    def signal_group(self, number: int) -> bool:
        """Send a signal to the group this process leads (or led). False when it is empty."""
        if not self.leads():
            return False
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _signal_by_pid(self, number: int) -> bool:
        try:
            if self.alive():
                os.kill(self.pid, number)
                return True
        except ProcessLookupError:
            pass
        return False
