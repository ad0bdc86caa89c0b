"""Finds workers that hang, and restarts them.

A worker hangs if tasks wait in its queues and it makes no progress for ``watchdog.after``
seconds though it could: it is stopped, its loop stands still, or it turns and fetches nothing.
One that is busy, whose queues are paused, or whose broker is away is not.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from celery import Celery
from kombu import Connection

from cloche.broker.connection.probe import reach
from cloche.cluster.queues import lengths, paused_queues
from cloche.health.hung import HungWorker, HungWorkers
from cloche.process.events import record_hung
from cloche.process.heartbeat import Heartbeat, heartbeat_path, heartbeats
from cloche.process.status import ProcessState
from cloche.process.supervisor import Supervisor
from cloche.settings import Settings
from cloche.worker.heartbeat import STACKS_SIGNAL

#: Seconds that each way to the stacks may take.
_STACKS_TIMEOUT = 5.0

logger = logging.getLogger(__name__)

#: Seconds a hung worker that runs nothing may take to stop.
_STOP_TIMEOUT = 5.0

#: Characters of the stacks that an event keeps.
_KEPT = 20_000


def dump_stacks(directory: Path, beat: Heartbeat, *, stopped: bool = False) -> tuple[Path, str]:
    """Write the stacks of all its threads into a file; the file and what is in it.

    Empty if neither py-spy (not installed, not allowed) nor the worker itself wrote anything.
    A ``stopped`` worker is made to go on for its own word. Blocks for some seconds.
    """
    target = directory / "stacks" / f"{beat.name}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    target.parent.mkdir(mode=0o700, exist_ok=True)
    text = _py_spy(beat.pid) or _own_word(directory, beat, stopped=stopped)
    target.write_text(text)
    return target, text


def _py_spy(pid: int) -> str:
    program = shutil.which("py-spy")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=_STACKS_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _own_word(directory: Path, beat: Heartbeat, *, stopped: bool) -> str:
    """What faulthandler writes, whatever the interpreter does: see worker/heartbeat.py."""
    path = heartbeat_path(directory, beat.node, ".stacks")
    before = _size(path)
    if before is None or not beat.identity.signal(STACKS_SIGNAL):
        return ""
    if stopped:
        beat.identity.signal(signal.SIGCONT)
    deadline = time.monotonic() + _STACKS_TIMEOUT
    size = before
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = _size(path) or 0
        if now == size > before:  # it has ended writing
            break
        size = now
    return path.read_text(errors="replace")[before:]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


class WorkerWatchdog:
    """Watches the workers of one supervisor. ``say`` prints a line."""

    def __init__(
        self, app: Celery, settings: Settings, supervisor: Supervisor, say: Callable[[str], None]
    ) -> None:
        self._app = app
        self._directory: Path = settings.run_dir.absolute()
        self._settings = settings.watchdog
        self._supervisor = supervisor
        self._say = say
        self._judge = HungWorkers(self._settings.after)
        self._connection: Connection | None = None

    async def run(self) -> None:
        if not self._settings.enabled:
            return
        while True:
            await asyncio.sleep(min(5.0, max(0.5, self._settings.after / 10)))
            try:
                for hung in await asyncio.to_thread(self._look):
                    await self._restart(hung)
            except Exception as error:  # noqa: BLE001 (it must not end unnoticed)
                self._say(f"the watchdog failed, and goes on: {error!r}")

    def _look(self) -> list[HungWorker]:
        """One look at all of them; nothing is judged while the broker does not answer."""
        mine = {
            status.identity.pid: status.identity
            for status in self._supervisor.status()
            if status.identity is not None and status.state is ProcessState.READY
        }
        found = [beat for beat in heartbeats(self._directory) if beat.pid in mine]
        if not found:
            return []
        try:
            waiting = self._waiting(sorted({name for beat in found for name in beat.queues}))
        except Exception as error:  # noqa: BLE001 (any transport, any error: judge nobody)
            logger.debug("the broker does not answer: %r", error)
            self._drop()
            self._judge.forget()
            return []
        return [hung for beat in found if (hung := self._heard(beat, waiting)) is not None]

    def _heard(self, beat: Heartbeat, waiting: dict[str, int]) -> HungWorker | None:
        try:
            process = psutil.Process(beat.pid)
            stopped = process.status() == psutil.STATUS_STOPPED
            times = process.cpu_times()
        except psutil.Error:
            return None
        return self._judge.hear(
            beat,
            sum(waiting.get(name, 0) for name in beat.queues),
            stopped=stopped,
            cpu=times.user + times.system,
            now=time.monotonic(),
        )

    def _waiting(self, names: list[str]) -> dict[str, int]:
        """Messages per queue, those of paused ones left out. Raises the connection's errors."""
        if self._connection is None:
            self._connection = self._app.connection_for_read()
        reach(self._connection)
        found = lengths(self._connection, names)
        paused = paused_queues(self._connection)
        return {name: length for name, length in found.items() if name not in paused}

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    async def _restart(self, hung: HungWorker) -> None:
        """Tell, remember, restart. What it runs gets the time of every stop."""
        beat = hung.beat
        path, stacks = await asyncio.to_thread(
            dump_stacks, self._directory, beat, stopped="signal" in hung.why
        )
        plural = "message waits" if hung.waiting == 1 else "messages wait"
        self._say(
            f"{beat.name} hangs: {hung.waiting} {plural} in {', '.join(beat.queues)}, no "
            f"progress for {hung.seconds:.0f} s, {hung.why}; its stacks are in {path}; "
            "it is restarted"
        )
        record_hung(
            self._directory,
            beat.node,
            hung.why,
            pid=beat.pid,
            seconds=round(hung.seconds, 1),
            waiting=hung.waiting,
            queues=beat.queues,
            active=beat.active,
            stacks=stacks[:_KEPT],
        )
        self._judge.forget(beat.node)
        hurry = asyncio.create_task(self._hurry(beat))
        try:
            await self._supervisor.restart(self._name_of(beat), counted=True)
        except Exception as error:  # noqa: BLE001 (told; the supervisor goes on trying)
            self._say(f"{beat.name} could not be restarted: {error}")
        finally:
            hurry.cancel()

    def _name_of(self, beat: Heartbeat) -> str:
        return next(
            status.name
            for status in self._supervisor.status()
            if status.identity is not None and status.identity.pid == beat.pid
        )

    async def _hurry(self, beat: Heartbeat) -> None:
        """A hung worker that runs nothing loses nothing by SIGKILL; its lease ends sooner."""
        if not beat.active:
            await asyncio.sleep(_STOP_TIMEOUT)
            beat.identity.signal(signal.SIGKILL)
