"""What is done about workers of this application that run already."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from cloche.cluster.existing import ExistingWorker
from cloche.errors import ExistingWorkerError
from cloche.process.spec import StopSignal
from cloche.process.unsupervised import stop_unsupervised
from cloche.settings.model import StopSettings

#: adopt: count and watch them, start the rest; replace: stop them first; leave: start beside
#: them; fail: start nothing.
OnExisting = Literal["adopt", "replace", "leave", "fail"]

#: Where nobody can be asked: nothing is stopped, and nothing runs twice.
DEFAULT: OnExisting = "adopt"

Ask: TypeAlias = "Callable[[Sequence[ExistingWorker]], OnExisting]"

Say = Callable[[str], None]


def resolve_existing(
    found: Sequence[ExistingWorker], answer: OnExisting, stop: StopSettings, say: Say
) -> tuple[ExistingWorker, ...]:
    """Do as said; returns those to adopt. Blocks while they stop.

    Raises ExistingWorkerError for "fail", and for "replace" if one cannot be.
    """
    for one in found:
        say(f"runs already: {one.describe()}")
    if found and answer == "fail":
        raise ExistingWorkerError(
            "workers of this application run already",
            why="\n".join(one.describe() for one in found),
            fix="stop them, or say --on-existing adopt, replace or leave",
        )
    if answer == "replace":
        stop_workers(found, stop, say)
    return tuple(found) if answer == "adopt" else ()


def stop_workers(found: Sequence[ExistingWorker], stop: StopSettings, say: Say) -> None:
    """Stop these workers, gracefully first. Blocks.

    Raises ExistingWorkerError, before any is touched, if a launcher would start one again.
    """
    kept = [one for one in found if one.launcher is not None]
    if kept:
        raise ExistingWorkerError(
            f"{kept[0].name} is kept by another Cloche launcher (pid {kept[0].launcher})",
            why="it would start the worker again",
            fix="run `cloche stop` in its directory, or say --on-existing adopt or leave",
        )
    for one in found:
        one.identity.signal(signal.SIGTERM)  # all at the same time; then each is waited for
    for one in found:
        say(f"stopping {one.name} (pid {one.pid})")
        if not stop_unsupervised(one.identity, stop_signals(stop), say, asked=True):
            raise ExistingWorkerError(f"{one.name} (pid {one.pid}) does not stop")


def stop_signals(stop: StopSettings) -> tuple[StopSignal, ...]:
    """How a worker is stopped: TERM and ``stop.soft``, QUIT and the rest of ``stop.grace``."""
    return ((signal.SIGTERM, stop.soft), (signal.SIGQUIT, stop.grace - stop.soft))
