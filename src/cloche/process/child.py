"""One supervised process through all its lives."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cloche.errors import ClocheError, CrashLoopError, NotReadyError
from cloche.process.death_watch import DeathWatch
from cloche.process.instance import ProcessInstance, death_signal, describe_exit
from cloche.process.output import Output
from cloche.process.record import ChildRecord
from cloche.process.run_directory import RunDirectory
from cloche.process.spec import ProcessSpec
from cloche.process.status import ProcessState, ProcessStatus
from cloche.process.stopping import kill_carriers
from cloche.process.systemd import ReadinessListener

_POLL = 0.05
_PIPE_BYTES = 256 * 1024
#: Last lines of a process that are shown when it is given up.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SupervisorContext:
    """What all children of a supervisor share. ``save`` writes the state file."""

    run_directory: RunDirectory
    output: Output
    death_watch: DeathWatch
    save: Callable[[], None]
    changed: Callable[[ProcessStatus], None]


class Child:
    """A spec, what it is doing, and the task that keeps it alive."""

    def __init__(
        self, spec: ProcessSpec, needs: tuple[Child, ...], around: SupervisorContext
    ) -> None:
        self.spec = spec
        self.needs = needs
        self.ready = asyncio.Event()
        #: Set once a start has come to its end: ready, or ``failure``.
        self.settled = asyncio.Event()
        self.failure: ClocheError | None = None
        self._around = around
        self._state = ProcessState.STOPPED
        self._since = time.time()
        self._restarts = 0
        self._crashes: deque[float] = deque()
        self._code: int | None = None
        self._life: ProcessInstance | None = None
        self._listener: ReadinessListener | None = None
        self._doubt = ""
        self._task: asyncio.Task[None] | None = None
        around.output.add(spec.name, spec.colour)

    @property
    def status(self) -> ProcessStatus:
        return ProcessStatus(
            name=self.spec.name,
            state=self._state,
            identity=None if self._life is None else self._life.identity,
            restarts=self._restarts,
            since=self._since,
            last_lines=self._around.output.tail(self.spec.name),
            exit_code=self._code,
            detail=self._listener.state.get("STATUS", "") if self._listener else "",
            told=dict(self._listener.state) if self._listener else {},
            group=self.spec.belongs_to,
        )

    @property
    def kept(self) -> bool:
        """Whether somebody keeps it running (or tries to)."""
        return self._task is not None and not self._task.done()

    def record(self, stop_order: int) -> ChildRecord:
        """This process for the state file."""
        return ChildRecord(
            name=self.spec.name,
            command=tuple(self.spec.command),
            stop_order=stop_order,
            stop_signals=self.spec.stop_signals,
            death_signal=death_signal(self.spec),
            identity=None if self._life is None else self._life.identity,
        )

    def begin(self, *, counted: bool = False) -> None:
        """Start it (as soon as its needs are ready) and keep it running.

        ``counted``: it is a restart that nobody asked for.
        """
        self._restarts += counted
        self.settled.clear()
        self.failure = None
        self._crashes.clear()
        self._task = asyncio.create_task(self._tend(), name=f"tend {self.spec.name}")
        self._task.add_done_callback(self._tended)

    def let_be(self) -> None:
        """Restart it no more; what runs goes on."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Stop it and all of its group: gracefully, then by force."""
        self.let_be()
        self.ready.clear()
        life = self._life
        if life is not None:
            self._enter(ProcessState.STOPPING)
            await life.stop(self.spec.stop_signals, self._say)
            await self._bury(life)
        self._enter(ProcessState.STOPPED)

    def kill(self) -> None:
        """SIGKILL its group now."""
        self.let_be()
        if self._life is not None:
            self._life.kill()

    async def _tend(self) -> None:
        while True:
            self._enter(ProcessState.WAITING)
            await self._needs_ready()
            try:
                life = self._spawn()
            except OSError as error:
                self._cannot_start(error)
                return
            await self._become_ready(life)
            await life.gone()
            await self._bury(life)
            if not self.spec.keep:
                self._ended()
                return
            if self._in_crash_loop():
                return
            delay = self.spec.restart.delay(len(self._crashes))
            self._say(f"ended ({describe_exit(self._code)}): again in {delay:.1f} s")
            self._enter(ProcessState.BACKING_OFF)
            # What it left behind in other sessions would meet its successor.
            instance = self._around.run_directory.instance
            await asyncio.to_thread(kill_carriers, instance, name=self.spec.name, say=self._say)
            await asyncio.sleep(delay)
            self._restarts += 1

    async def _needs_ready(self) -> None:
        while waiting := [need for need in self.needs if not need.ready.is_set()]:
            await waiting[0].ready.wait()

    def _spawn(self) -> ProcessInstance:
        name, around = self.spec.name, self._around
        environment: dict[str, str] = {}
        if self.spec.notify:
            self._listener = ReadinessListener(around.run_directory.socket_path(f"{name}.notify"))
            environment = self._listener.environment
        reading, writing = _pipe()
        try:
            life = ProcessInstance(self.spec, around.run_directory.instance, environment, writing)
        except BaseException:
            os.close(reading)
            self._close_listener()
            raise
        finally:
            os.close(writing)
        self._life = life
        around.save()
        around.output.attach(name, reading)
        around.death_watch.hand_over(name, reading)
        self._code = None
        self._enter(ProcessState.STARTING)
        return life

    async def _become_ready(self, life: ProcessInstance) -> None:
        """Return when it is ready or has ended; one that is late is stopped."""
        self._doubt = ""
        ready = asyncio.ensure_future(self._say_ready())
        ended = asyncio.ensure_future(life.exited.wait())
        try:
            await asyncio.wait(
                (ready, ended),
                timeout=self.spec.ready_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ended.done():
                return
            if ready.done():
                self.failure = None  # of an earlier try
                self.ready.set()
                self._enter(ProcessState.READY)
                self.settled.set()
                return
        finally:
            ready.cancel()
            ended.cancel()
        self._fail(self._late())
        await life.stop(self.spec.stop_signals, self._say)

    async def _say_ready(self) -> None:
        if self._listener is not None:
            await self._listener.ready.wait()
        while self.spec.ready is not None:
            try:
                if await self.spec.ready():
                    return
                self._doubt = ""
            except Exception as error:  # noqa: BLE001 (any failure of a probe means: not yet)
                self._doubt = f"{type(error).__name__}: {error}"
            await asyncio.sleep(_POLL)

    async def _bury(self, life: ProcessInstance) -> None:
        """After the end: take in its last words, release what was its own."""
        if self._life is not life:
            return
        self._life = None
        self._code = life.code
        self.ready.clear()
        self._around.death_watch.take_back(self.spec.name)
        self._around.output.detach(self.spec.name)
        self._close_listener()

    def _ended(self) -> None:
        """A process that may end did so; status 0 serves those that need it."""
        self._enter(ProcessState.STOPPED)
        if self._code == 0:
            self.ready.set()
            self.settled.set()
        elif not self.settled.is_set():
            name = self.spec.name
            self._fail(NotReadyError(f"{name} ended before it was ready", why=self._why()))

    def _in_crash_loop(self) -> bool:
        now = time.monotonic()
        self._crashes.append(now)
        while now - self._crashes[0] > self.spec.crash_window:
            self._crashes.popleft()
        if len(self._crashes) < self.spec.crash_limit:
            return False
        times, window = len(self._crashes), self.spec.crash_window
        what = f"{self.spec.name} ended {times} times within {window:g} s and is given up"
        self._say(f"crash loop: {what} ({describe_exit(self._code)})")
        for line in self._around.output.tail(self.spec.name)[-_SHOWN:]:
            self._say(f"    {line}")
        self._enter(ProcessState.CRASH_LOOP)
        self._fail(CrashLoopError(what, why=self._why(), fix=self._where()))
        return True

    def _late(self) -> NotReadyError:
        doubt = f" ({self._doubt})" if self._doubt else ""
        what = f"{self.spec.name} was not ready within {self.spec.ready_timeout:g} s{doubt}"
        self._say(what)
        return NotReadyError(what, why=self._why(), fix=self._where())

    def _cannot_start(self, error: OSError) -> None:
        what = f"{self.spec.name} cannot be started: {error.strerror or error}"
        self._say(what)
        self._enter(ProcessState.CRASH_LOOP)
        fix = f"check the command: {' '.join(self.spec.command)}"
        self._fail(NotReadyError(what, fix=fix))

    def _why(self) -> str:
        lines = self._around.output.tail(self.spec.name)
        head = "it still runs" if self._life is not None else describe_exit(self._code)
        if not lines:
            return f"{head}; it printed nothing"
        return "\n".join((f"{head}; its last lines:", *(f"    {line}" for line in lines)))

    def _where(self) -> str:
        return f"all it printed is in {self._around.run_directory.logs / self.spec.name}.log"

    def _fail(self, failure: ClocheError) -> None:
        self.failure = failure
        self.settled.set()
        self._around.changed(self.status)

    def _tended(self, task: asyncio.Task[None]) -> None:
        """An error of our own must not leave a process silently untended."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._enter(ProcessState.CRASH_LOOP)
            failure = error if isinstance(error, ClocheError) else None
            self._fail(failure or NotReadyError(f"{self.spec.name}: {error!r}"))

    def _say(self, text: str) -> None:
        self._around.output.say(f"{self.spec.name}: {text}")

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _enter(self, state: ProcessState) -> None:
        if state is not self._state:
            self._state, self._since = state, time.time()
            self._around.changed(self.status)


def _pipe() -> tuple[int, int]:
    """A roomy pipe: a child that prints while the loop is busy should not wait."""
    reading, writing = os.pipe()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # this user's pipes may hold too much already
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing
