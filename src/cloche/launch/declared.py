"""Declared workers: what each is to be, and how many of it."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from celery import Celery

from cloche.launch.pools import foreseen, queues_of
from cloche.launch.workers import declared_workers
from cloche.settings import Settings
from cloche.settings.model import WorkerSettings

_NUMBERED = re.compile(r"(?P<name>.+)-(?P<number>[1-9]\d*)$")


@dataclass(frozen=True, slots=True)
class Declared:
    """A worker by name. ``worker`` is settled (pool, concurrency, processes).

    ``arguments`` make ``cloche worker`` run it: a name in the settings, or options.
    """

    name: str
    worker: WorkerSettings
    arguments: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many processes of it are wanted."""
        return 1 if self.worker.processes is None else self.worker.processes

    def scaled(self, count: int) -> Declared:
        """The same, ``count`` times; also none at all."""
        return replace(self, worker=self.worker.model_copy(update={"processes": count}))

    def labels(self) -> tuple[str, ...]:
        """The names of its processes: its own if it is one, else numbered."""
        return labels(self.name, self.count)

    def queues(self, app: Celery) -> frozenset[str]:
        """What it consumes; empty if nobody can say."""
        try:
            return frozenset(queues_of(app, self.worker))
        except Exception:  # noqa: BLE001 (a router of theirs; the worker tells it in its own log)
            return frozenset()


def labels(name: str, count: int, present: Collection[str] = ()) -> tuple[str, ...]:
    """``count`` process names of a worker, keeping those ``present`` as far as they go.

    One process is called as the worker is; several are numbered. A worker that grows keeps
    the processes it has.
    """
    kept = sorted(present, key=_number)[:count]
    if not kept and count == 1:
        return (name,)
    free = (
        label
        for number in range(1, count + len(kept) + 2)
        if (label := f"{name}-{number}") not in kept
        # A single process, called as the worker, is its number 1.
        and not (number == 1 and name in kept)
    )
    return (*kept, *(next(free) for _ in range(count - len(kept))))


def node_of(label: str) -> str:
    """The node name of a worker process of this machine."""
    return f"{label}@{socket.gethostname()}"


def declared(app: Celery, settings: Settings) -> dict[str, Declared]:
    """The workers of the settings, or of simple mode."""
    return {
        name: Declared(name, foreseen(app, worker), ("--like", name))
        for name, worker in declared_workers(settings).items()
    }


def from_options(
    app: Celery, settings: Settings, name: str, options: Mapping[str, object]
) -> Declared:
    """A worker declared on the command line, on top of a declared one of its name.

    ``options`` are fields of WorkerSettings (queues, exclude_queues, pool, concurrency,
    processes). Raises pydantic's ValidationError.
    """
    base = declared_workers(settings).get(name)
    arguments = ("--like", name) if base is not None else ()
    told = dict(options)
    if "queues" in told:
        told.setdefault("exclude_queues", ())
    given = {**(base.model_dump(exclude_unset=True) if base is not None else {}), **told}
    worker = WorkerSettings.model_validate(given)
    return Declared(name, foreseen(app, worker), (*arguments, *_as_options(options)))


def _as_options(options: Mapping[str, object]) -> tuple[str, ...]:
    """``{"queues": ["a", "b"], "concurrency": 2}`` as ``cloche worker`` takes it."""
    words: list[str] = []
    for key, value in options.items():
        if key == "processes":  # so many are started; each is one
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words += [f"--{key.replace('_', '-')}", text]
    return tuple(words)


def _number(label: str) -> tuple[int, str]:
    found = _NUMBERED.match(label)
    return (int(found["number"]) if found else 0, label)
