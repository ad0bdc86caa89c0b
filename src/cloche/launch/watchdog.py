"""Finds workers that live and work no more, and has them started anew.

A worker is deaf if tasks wait in its queues and it makes no progress for ``watchdog.after``
seconds though it could: it is stopped, its loop stands still, or it turns and fetches nothing.
One that is busy, whose queues are paused, or whose broker is away is not.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from celery import Celery
from kombu import Connection

from cloche.cluster.queues import lengths, paused_queues
from cloche.launch.stacks import dump_stacks
from cloche.process.deaf import record_deaf
from cloche.process.pulse import PERIOD, SILENT, Pulse, pulses
from cloche.process.status import ProcessState
from cloche.process.supervisor import Supervisor
from cloche.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds a deaf worker that runs nothing may take to stop.
_PATIENCE = 5.0
#: Characters of the stacks that an event keeps.
_KEPT = 20_000


@dataclass(slots=True)
class Suspicion:
    """Since when (monotonic) a worker has made no progress, and how far it was."""

    pid: int
    processed: int
    cpu: float
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Deaf:
    """A verdict. ``waiting`` are messages in its queues."""

    pulse: Pulse
    why: str
    waiting: int
    seconds: float


class Judge:
    """Says which of the workers are deaf; knows only what it is shown."""

    def __init__(self, after: float) -> None:
        self._after = after
        self._suspicions: dict[str, Suspicion] = {}

    def hear(
        self, pulse: Pulse, waiting: int, *, stopped: bool, cpu: float, now: float
    ) -> Deaf | None:
        """One look at a worker: ``waiting`` messages, ``stopped`` by a signal, ``cpu`` seconds
        used so far. A verdict when it has been deaf for long enough."""
        before = self._suspicions.get(pulse.node)
        worked = before is not None and cpu > before.cpu
        why = _why(pulse, now, stopped=stopped, worked=worked) if waiting else None
        if (
            before is None
            or why is None
            or (before.pid, before.processed) != (pulse.pid, pulse.processed)
        ):
            since = now if why else None
            self._suspicions[pulse.node] = Suspicion(pulse.pid, pulse.processed, cpu, since)
            return None
        before.cpu = cpu
        before.since = now if before.since is None else before.since
        if now - before.since < self._after:
            return None
        return Deaf(pulse, why, waiting, now - before.since)

    def forget(self, node: str | None = None) -> None:
        """Begin anew with one worker, or with all: the broker did not answer."""
        if node is None:
            self._suspicions.clear()
        else:
            self._suspicions.pop(node, None)


def _why(pulse: Pulse, now: float, *, stopped: bool, worked: bool) -> str | None:
    """In what way it does not work, in words; None if it does, or has a reason not to."""
    if stopped:
        return "it is stopped by a signal"
    if now - pulse.at > SILENT:
        busy = pulse.active and worked  # a task may hold the interpreter for long
        return None if busy else "it gives no sign of life"
    if not pulse.connected:
        return "it does not connect to the broker"
    if pulse.stands_still:
        return "its loop stands still"
    if pulse.active or pulse.reserved:
        return None
    still = now - pulse.turned > 2.5 * PERIOD
    return "its loop stands still" if still else "it fetches nothing"


class Watchdog:
    """Watches the workers of one supervisor. ``say`` prints a line."""

    def __init__(
        self, app: Celery, settings: Settings, supervisor: Supervisor, say: Callable[[str], None]
    ) -> None:
        self._app = app
        self._directory: Path = settings.run_dir.absolute()
        self._settings = settings.watchdog
        self._supervisor = supervisor
        self._say = say
        self._judge = Judge(self._settings.after)
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        if not self._settings.enabled:
            return
        while True:
            await asyncio.sleep(min(5.0, max(0.5, self._settings.after / 10)))
            try:
                for deaf in await asyncio.to_thread(self._look):
                    await self._restart(deaf)
            except Exception as error:  # noqa: BLE001 (it must not end unnoticed)
                self._say(f"the watchdog failed, and goes on: {error!r}")

    def _look(self) -> list[Deaf]:
        """One look at all of them; nothing is judged while the broker does not answer."""
        mine = {
            status.identity.pid: status.identity
            for status in self._supervisor.status()
            if status.identity is not None and status.state is ProcessState.READY
        }
        found = [pulse for pulse in pulses(self._directory) if pulse.pid in mine]
        if not found:
            return []
        try:
            waiting = self._waiting(sorted({name for pulse in found for name in pulse.queues}))
        except Exception as error:  # noqa: BLE001 (any transport, any error: judge nobody)
            logger.debug("the broker does not answer: %r", error)
            self._drop()
            self._judge.forget()
            return []
        return [deaf for pulse in found if (deaf := self._heard(pulse, waiting)) is not None]

    def _heard(self, pulse: Pulse, waiting: dict[str, int]) -> Deaf | None:
        try:
            process = psutil.Process(pulse.pid)
            stopped = process.status() == psutil.STATUS_STOPPED
            times = process.cpu_times()
        except psutil.Error:
            return None
        return self._judge.hear(
            pulse,
            sum(waiting.get(name, 0) for name in pulse.queues),
            stopped=stopped,
            cpu=times.user + times.system,
            now=time.monotonic(),
        )

    def _waiting(self, names: list[str]) -> dict[str, int]:
        """Messages per queue, those of paused ones left out. Raises the connection's errors."""
        if self._connection is None:
            self._connection = self._app.connection_for_read()
        self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        found = lengths(self._connection, names)
        paused = paused_queues(self._connection)
        return {name: length for name, length in found.items() if name not in paused}

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    async def _restart(self, deaf: Deaf) -> None:
        """Tell, remember, start anew. What it runs gets the time of every stop."""
        pulse = deaf.pulse
        path, stacks = await asyncio.to_thread(
            dump_stacks, self._directory, pulse, stopped="signal" in deaf.why
        )
        plural = "message waits" if deaf.waiting == 1 else "messages wait"
        self._say(
            f"{pulse.name} is deaf: {deaf.waiting} {plural} in {', '.join(pulse.queues)}, no "
            f"progress for {deaf.seconds:.0f} s, {deaf.why}; its stacks are in {path}; "
            "it is started anew"
        )
        record_deaf(
            self._directory,
            pulse.node,
            deaf.why,
            pid=pulse.pid,
            seconds=round(deaf.seconds, 1),
            waiting=deaf.waiting,
            queues=pulse.queues,
            active=pulse.active,
            stacks=stacks[:_KEPT],
        )
        self._judge.forget(pulse.node)
        hurry = asyncio.create_task(self._hurry(pulse))
        try:
            await self._supervisor.restart(self._name_of(pulse), counted=True)
        except Exception as error:  # noqa: BLE001 (told; the supervisor goes on trying)
            self._say(f"{pulse.name} could not be started anew: {error}")
        finally:
            hurry.cancel()

    def _name_of(self, pulse: Pulse) -> str:
        return next(
            status.name
            for status in self._supervisor.status()
            if status.identity is not None and status.identity.pid == pulse.pid
        )

    async def _hurry(self, pulse: Pulse) -> None:
        """A deaf worker that runs nothing loses nothing by SIGKILL; its lease ends sooner."""
        if not pulse.active:
            await asyncio.sleep(_PATIENCE)
            pulse.identity.signal(signal.SIGKILL)
