"""What a supervised process is doing, as everybody outside may see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cloche.process.identity import Identity


class ProcessState(StrEnum):
    """Where a process is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing-off"
    CRASH_LOOP = "crash-loop"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process now. ``since`` is the Unix time at which it entered ``state``.

    ``restarts`` counts since the supervisor's start; ``exit_code`` is of its last end
    (negative: killed by that signal); ``detail`` is its own word (sd_notify ``STATUS=``),
    ``told`` all such words by their keys.
    """

    name: str
    state: ProcessState
    identity: Identity | None
    restarts: int
    since: float
    last_lines: tuple[str, ...]
    exit_code: int | None = None
    detail: str = ""
    told: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
