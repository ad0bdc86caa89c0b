"""The cluster now, kept fresh by one thread so that no page ever waits for the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from celery import Celery
from kombu import Connection

from cloche.broker.connection.probe import reach
from cloche.cluster.control import COMMANDS, ask, workers_from
from cloche.cluster.queues import declared_queues, paused_queues, queues_seen
from cloche.cluster.schedules import schedules_seen
from cloche.health.answers import needed, one_line
from cloche.health.runner import Ask, Runner
from cloche.records import Health, QueueSeen, SchedulesSeen, Snapshot, WorkerSeen
from cloche.settings import Settings


class Cluster:
    """Reads workers, queues and health of ``app``.

    ``checks`` are what it asks by name in each look (each returns a line of detail or raises), the
    broker first: by default what any process needs.
    ``every`` is the seconds between two looks, ``timeout`` the most a round of questions
    to the workers takes, ``patience`` the most a check may; a snapshot older than ``stale``
    seconds says so. ``known`` are workers expected to answer the first round.
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        *,
        checks: Mapping[str, Ask] = MappingProxyType({}),
        every: float = 2.0,
        timeout: float = 1.0,
        stale: float = 10.0,
        known: Collection[str] = (),
        patience: float = 3.0,
    ) -> None:
        self.app = app
        self._settings = settings
        self._every = every
        self._timeout = timeout
        self._stale = stale
        self._checks = Runner({**needed(app, settings), **checks}, patience)
        self._connection: Connection | None = None
        self._reading = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: Snapshot | None = None
        self._known: tuple[str, ...] = tuple(known)

    def start(self) -> None:
        """Begin to look, in a thread that does not keep the process alive."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self._thread.start()

    def stop(self, deadline: float = 5.0) -> None:
        """Stop looking; waits at most ``deadline`` seconds for a look under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(deadline)
        self._checks.stop()

    def health(self) -> tuple[Health, ...]:
        return self._checks.run()

    def workers(self) -> tuple[WorkerSeen, ...]:
        """Ask all workers now. Raises the connection's own errors."""
        with self._reading:
            return self._ask_workers()

    def queues(self) -> tuple[QueueSeen, ...]:
        """Read all queues now, with their consumers. Raises the connection's own errors."""
        with self._reading:
            workers = self._ask_workers()
            return queues_seen(self._open(), declared_queues(self.app), workers)

    def paused(self) -> frozenset[str]:
        """Queues that are paused now. Raises the connection's own errors."""
        with self._reading:
            return paused_queues(self._open())

    def snapshot(self) -> Snapshot:
        """The last look, at once. Its gaps say what it could not see and how old it is."""
        last = self._last
        if last is None:
            return Snapshot(at=time.time(), gaps=("The first look has not ended yet.",))
        age = time.time() - last.at
        if age <= self._stale:
            return last
        gap = f"This is {age:.0f} s old: the cluster has not answered since."
        return replace(last, gaps=(*last.gaps, gap))

    def look(self) -> Snapshot:
        """Look now and remember. Never raises: what failed becomes a gap."""
        health = self.health()
        gaps: list[str] = []
        workers: tuple[WorkerSeen, ...] = ()
        queues: tuple[QueueSeen, ...] = ()
        schedules: SchedulesSeen | None = None
        with self._reading:
            if not health[0].ok:
                self._drop()
                gaps.append("Workers and queues are unknown: the broker does not answer.")
            else:
                try:
                    workers = self._ask_workers()
                    queues = queues_seen(self._open(), declared_queues(self.app), workers)
                except Exception as error:  # noqa: BLE001 (any transport, any error: a gap)
                    self._drop()
                    gaps.append(f"Workers and queues could not be read: {one_line(error)}")
                else:
                    schedules = self._schedules(gaps)
        self._last = Snapshot(
            time.time(), health, workers, queues, schedules=schedules, gaps=tuple(gaps)
        )
        return self._last

    def _schedules(self, gaps: list[str]) -> SchedulesSeen | None:
        if not self.app.conf.beat_schedule:
            return SchedulesSeen((), None, known=True)
        try:
            return schedules_seen(self.app, self._settings, self._open())
        except Exception as error:  # noqa: BLE001 (any transport, any schedule: a gap)
            gaps.append(f"Schedules could not be read: {one_line(error)}")
            return None

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(self._every)
        with self._reading:
            self._drop()

    def _ask_workers(self) -> tuple[WorkerSeen, ...]:
        replies = ask(self.app, self._open(), COMMANDS, timeout=self._timeout, expected=self._known)
        workers = workers_from(replies)
        self._known = tuple(worker.name for worker in workers)
        return workers

    def _connect(self) -> Connection:
        return self.app.connection_for_read()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
            reach(self._connection)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
