"""Workers of this application that run already, whoever started them.

The process scan proposes, the broker confirms: a worker is one of ours if it answers at our
broker with the pid of a process of this user on this machine, has been up no longer than
that process, and has registered our application's tasks. Whatever else runs is not touched.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu import Connection

from cloche.broker.connection.probe import reach
from cloche.cluster.control import COMMANDS, Answers, ask_each, describe
from cloche.process.identity import Identity
from cloche.process.scan import WorkerCandidate, candidates, looks_like_launcher
from cloche.records import WorkerSeen

#: Seconds the workers have to answer.
_TIMEOUT = 1.0

#: A worker counts its uptime from when it is built, after its imports: the process is older
#: (much older where it was restarted in place by SIGHUP), but for clocks and rounding.
_SLACK = 3.0

#: Where a broker listens whose URL does not say.
_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "amqp": 5672, "amqps": 5671}

#: Share of task names that two registries must have in common to be of one application.
_ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class ExistingWorker:
    """A confirmed worker. ``since`` is Unix time; ``launcher`` the pid of a running Cloche
    launcher that keeps it, so that it would start it again."""

    name: str
    identity: Identity
    command: tuple[str, ...]
    seen: WorkerSeen
    since: float
    instance: str = ""
    launcher: int | None = None

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def queues(self) -> tuple[str, ...]:
        return self.seen.queues

    def describe(self) -> str:
        """One line for a person: who, what it consumes, since when."""
        keeper = f", kept by the launcher {self.launcher}" if self.launcher else ""
        return (
            f"{self.name} (pid {self.pid}, up {duration(self.seen.uptime)}{keeper}): "
            f"{', '.join(self.queues) or 'no queue'}; {self.seen.pool} × {self.seen.concurrency}"
        )


def existing_workers(
    app: Celery,
    load: Callable[[Celery], object],
    *,
    timeout: float = _TIMEOUT,
    but: Collection[str] = (),
) -> tuple[ExistingWorker, ...]:
    """The workers of ``app`` on this machine, by name; those of the run ``but`` left out.

    Asks the broker only if some process comes into question; then ``load`` imports the modules of
    the application's tasks. Raises the connection's errors.
    """
    with app.connection_for_read() as connection:
        found = [one for one in candidates(addresses(connection)) if one.instance not in but]
        if not found:
            return ()
        load(app)
        reach(connection)
        answers = ask_each(app, connection, (*COMMANDS, "registered"), timeout=timeout)
    return confirmed(found, answers, own_tasks(app))


def confirmed(
    found: Sequence[WorkerCandidate], answers: Answers, tasks: Collection[str]
) -> tuple[ExistingWorker, ...]:
    """Those of ``found`` that the broker's answers prove to be workers of these tasks."""
    others: dict[tuple[str, str], Any] = {
        (command, node): reply for command, node, reply in answers if command != "stats"
    }
    workers = []
    for command, node, stats in answers:
        if command != "stats" or not isinstance(stats, dict) or "error" in stats:
            continue
        names = others.get(("registered", node))
        seen = describe(
            node, stats, others.get(("active", node)), others.get(("active_queues", node))
        )
        candidate = _who(found, seen)
        if candidate is not None and same_application(tasks, _names(names)):
            workers.append(_existing(candidate, seen))
    return tuple(sorted(workers, key=lambda one: (one.name, one.pid)))


def same_application(ours: Collection[str], theirs: Collection[str]) -> bool:
    """Whether two registries are one application's: most of their own names in common.

    Not all, since a deploy adds and removes some; families every hardened application has
    do not count.
    """
    own = {name for name in ours if not _shared(name)}
    other = {name for name in theirs if not _shared(name)}
    if not own or not other:
        return own == other
    return len(own & other) >= _ALIKE * len(own | other)


def own_tasks(app: Celery) -> tuple[str, ...]:
    """All task names of an application whose modules are imported."""
    return tuple(app.tasks)


def addresses(connection: Connection) -> tuple[tuple[str, int], ...]:
    """The addresses a client of this broker is connected to; empty for a unix socket."""
    found: set[tuple[str, int]] = set()
    for url in (connection.as_uri(), *connection.alt):
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme.rpartition("+")[2])
        if parts.hostname and port:
            with suppress(OSError):
                places = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
                found |= {(str(place[4][0]), port) for place in places}
    return tuple(found)


def duration(seconds: float) -> str:
    """``3 d 4 h``, ``5 min``, ``7 s``: the two largest units, or one."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, parts = int(seconds), []
    for name, size in units:
        if left >= size:
            parts.append(f"{left // size} {name}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def _shared(name: str) -> bool:
    """Whether many applications have a task of this name: Celery's and our families'."""
    return name.startswith(("celery.", "cloche."))


def _names(reply: object) -> tuple[str, ...]:
    """``["proj.add [rate_limit=10/m]", …]`` as names (celery.worker.control.registered)."""
    if not isinstance(reply, list):
        return ()
    return tuple(str(one).partition(" [")[0] for one in reply)


def _who(found: Iterable[WorkerCandidate], seen: WorkerSeen) -> WorkerCandidate | None:
    """The process behind an answer: its pid, on this machine, old enough, not older."""
    host = seen.name.partition("@")[2]
    for one in found:
        if one.inner_pid != seen.pid or seen.uptime > one.age + _SLACK:
            continue
        if one.host:  # in a container
            here = host == one.host
        else:
            here = host == socket.gethostname() or any(seen.name in word for word in one.command)
        if here:
            return one
    return None


def _existing(candidate: WorkerCandidate, seen: WorkerSeen) -> ExistingWorker:
    launcher = candidate.parent if looks_like_launcher(candidate.parent) else None
    return ExistingWorker(
        name=seen.name,
        identity=candidate.identity,
        command=candidate.command,
        seen=seen,
        since=time.time() - candidate.age,
        instance=candidate.instance,
        launcher=launcher if launcher != os.getpid() else None,
    )
