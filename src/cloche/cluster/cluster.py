"""The cluster now, kept fresh by one thread so that no page ever waits for the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from functools import partial

from celery import Celery
from kombu import Connection

from cloche.cluster.health import Check, Checks, check_broker, check_results, one_line
from cloche.cluster.mailbox import ask
from cloche.cluster.queues import declared_queues, paused_queues, queues_seen
from cloche.cluster.workers import COMMANDS, workers_from
from cloche.records import Health, QueueSeen, Snapshot, WorkerSeen


class Cluster:
    """Reads workers, queues and health of ``app``.

    ``checks`` are further health checks by name (each returns a line of detail or raises).
    ``every`` is the seconds between two looks, ``timeout`` the most a round of questions
    to the workers takes, ``patience`` the most a check may; a snapshot older than ``stale``
    seconds says so. ``known`` are workers expected to answer the first round.
    """

    def __init__(
        self,
        app: Celery,
        checks: Mapping[str, Check] | None = None,
        *,
        every: float = 2.0,
        timeout: float = 1.0,
        stale: float = 10.0,
        known: Collection[str] = (),
        patience: float = 3.0,
    ) -> None:
        self.app = app
        self._every = every
        self._timeout = timeout
        self._stale = stale
        self._checks = Checks(
            {
                "broker": partial(check_broker, self._connect),
                "results": partial(check_results, app),
                **(checks or {}),
            },
            patience,
        )
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
        """Run every check now."""
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
        return Snapshot(last.at, last.health, last.workers, last.queues, (*last.gaps, gap))

    def look(self) -> Snapshot:
        """Look now and remember. Never raises: what failed becomes a gap."""
        health = self.health()
        gaps: list[str] = []
        workers: tuple[WorkerSeen, ...] = ()
        queues: tuple[QueueSeen, ...] = ()
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
        self._last = Snapshot(time.time(), health, workers, queues, tuple(gaps))
        return self._last

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
            self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
