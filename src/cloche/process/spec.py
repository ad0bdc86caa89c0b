"""What is supervised: one process, described."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloche.backoff import Backoff
from cloche.errors import ProcessError

#: A signal and the seconds to wait for its effect before the next one is sent.
StopSignal = tuple[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: its command, what it needs, when it is ready, how it stops.

    It is ready once it said ``READY=1`` (if ``notify``) and ``ready()`` returned True (if
    given, polled; an exception means "not yet"); with neither, as soon as it runs.
    ``ready_timeout`` counts in seconds from its start.

    ``stop_signals`` go to the main process one after the other; after the last wait the
    whole group is killed. ``crash_limit`` ends within ``crash_window`` seconds make a crash
    loop. ``keep=False`` is a process that may end by itself and is not restarted.
    ``dies_with_launcher`` asks the kernel (Linux) for the first stop signal the moment the
    launcher dies: for everything but the broker, which must outlive the draining workers.
    The signal may come more than once (for each thread of the launcher that dies).
    Processes of one ``group`` are replicas of one thing, told apart by their names.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    needs: tuple[str, ...] = ()
    ready: Callable[[], Awaitable[bool]] | None = None
    notify: bool = False
    ready_timeout: float = 60.0
    stop_signals: tuple[StopSignal, ...] = ((signal.SIGTERM, 45.0),)
    restart: Backoff = field(default_factory=lambda: Backoff(0.5, 2.0, 30.0, jitter=0.3))
    crash_limit: int = 5
    crash_window: float = 60.0
    keep: bool = True
    dies_with_launcher: bool = True
    keeps_data: bool = False
    colour: str | None = None
    group: str = ""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ProcessError(f"{self.name!r} cannot be the name of a process")
        if not self.command:
            raise ProcessError(f"{self.name} has no command")

    @property
    def belongs_to(self) -> str:
        """The group, which is the process's own name where it stands alone."""
        return self.group or self.name


def stop_order(specs: Sequence[ProcessSpec]) -> dict[str, int]:
    """In which round each process stops: 0 for those that nobody needs, then what they need.

    Raises ProcessError for a name given twice, a need nobody provides, and a circle.
    """
    by_name = {spec.name: spec for spec in specs}
    if len(by_name) != len(specs):
        raise ProcessError("two processes have the same name")
    order: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ProcessError(
                f"processes need each other in a circle: {' → '.join((*path, name))}"
            )
        if order.get(name, -1) >= len(path):
            return
        order[name] = len(path)
        for need in by_name[name].needs:
            if need not in by_name:
                raise ProcessError(f"{name} needs {need}, which is not among the processes")
            visit(need, (*path, name))

    for spec in specs:
        visit(spec.name, ())
    return order
