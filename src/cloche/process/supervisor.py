"""The supervisor: starts processes in the order of their needs, keeps them, stops them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from cloche.errors import ProcessError
from cloche.process.child import Child, SupervisorContext
from cloche.process.death_watch import DeathWatch
from cloche.process.output import Output
from cloche.process.run_directory import RunDirectory
from cloche.process.spec import ProcessSpec, stop_order
from cloche.process.status import ProcessStatus
from cloche.process.stopping import kill_carriers

#: Seconds between two words about what a stop still waits for.
_REMIND = 5.0


class Supervisor:
    """Runs ``specs`` in a run directory. Make and use it in one event loop, whose thread
    must live as long as the launcher (best the main thread).

    ``on_change`` is called in the loop with each new status of a process.
    Raises ProcessError when the specs do not fit together.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        run_directory: RunDirectory,
        output: Output,
        on_change: Callable[[ProcessStatus], None] | None = None,
    ) -> None:
        self._order = stop_order(specs)
        self._run_directory = run_directory
        self._output = output
        self._on_change = on_change
        self._death_watch = DeathWatch(run_directory, output.say)
        self._children: dict[str, Child] = {}
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._begun = False
        self._locked_here = False
        self._around = SupervisorContext(
            run_directory, output, self._death_watch, self._save, self._changed
        )
        self._make(specs)

    async def start(self, only: Collection[str] | None = None) -> bool:
        """Start everything, each as soon as its needs are ready; True when all are.

        ``only`` these and what they need; the rest is known and waits for :meth:`begin`.

        False when a stop was asked for meanwhile. Raises ProcessError if another launcher
        runs here, NotReadyError or CrashLoopError with the last lines of the culprit,
        after stopping what was started. What an earlier run left is stopped first.
        """
        locked_here = await asyncio.to_thread(self._run_directory.lock)
        try:
            await self._reclaim()
            if self._stopping is None:
                self._save()
                self._death_watch.start()
        except OSError as error:
            self._unlock(locked_here)
            raise ProcessError("cannot start the guard", why=str(error)) from error
        except BaseException:
            self._unlock(locked_here)
            raise
        if self._stopping is not None:
            self._unlock(locked_here)
            return False
        self._begun, self._locked_here = True, locked_here
        chosen = self._with_needs(self._children if only is None else only)
        for child in chosen:
            child.begin()
        return await self._all_settled(chosen)

    async def begin(self, names: Collection[str]) -> bool:
        """Start those of ``names`` that do not run, and what they need. As ``start``, but the
        others go on when these fail.

        Also out of a crash loop; those that run are let be.
        """
        if self._stopping is not None:
            return False
        chosen = self._with_needs(names)
        for child in chosen:
            if not child.kept:
                child.begin()
        return await self._all_settled(chosen, stop_on_failure=False)

    async def halt(self, names: Collection[str], *, now: bool = False) -> None:
        """Stop ``names``, those first that others do not need; they stay known.

        ``now``: SIGKILL, but to what keeps data. Raises ProcessError while another process
        that runs needs one of them.
        """
        chosen = [self._child(name) for name in names]
        for child in chosen:
            users = [user.spec.name for user in self._users(child) if user not in chosen]
            if users:
                raise ProcessError(
                    f"{child.spec.name} is needed by {', '.join(users)}",
                    fix="stop those too, or everything",
                )
        for number in sorted({self._order[child.spec.name] for child in chosen}):
            leaving = [child for child in chosen if self._order[child.spec.name] == number]
            for child in leaving:
                if now and not child.spec.keeps_data:
                    child.kill()
            await asyncio.gather(*(child.stop() for child in leaving))
            for child in leaving:
                await asyncio.to_thread(
                    kill_carriers,
                    self._run_directory.instance,
                    name=child.spec.name,
                    say=self._output.say,
                )
        self._save()

    async def run(self) -> None:
        """Return when a stop has been completed; until then processes are kept running."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """Stop everything, those first that nobody needs; returns when nothing is left."""
        await asyncio.shield(self._begin_stop())

    def kill(self) -> None:
        """SIGKILL every group at once (a second Ctrl-C); ``run`` and ``stop`` return soon.

        What keeps data is asked to stop as soon as the others are gone.
        """
        for child in self._children.values():
            if not child.spec.keeps_data:
                child.kill()
        self._begin_stop()

    def status(self) -> tuple[ProcessStatus, ...]:
        """Every process now, what is needed before what needs it."""
        return tuple(child.status for child in self._children.values())

    @property
    def guard_pid(self) -> int | None:
        """The pid of the guard, while one runs."""
        return self._death_watch.pid

    async def restart(
        self,
        name: str,
        spec: ProcessSpec | None = None,
        *,
        now: bool = False,
        counted: bool = False,
    ) -> bool:
        """Stop one process and start it anew, also out of a crash loop. As ``begin``.

        With ``spec``, of the same name and needs, as another one. ``now``: SIGKILL, but to
        what keeps data. ``counted``: among its restarts, as nobody asked for it.
        """
        child = self._child(name)
        if now and not child.spec.keeps_data:
            child.kill()
        await child.stop()
        if self._stopping is not None:
            return False
        if spec is not None:
            child.spec = spec
        child.begin(counted=counted)
        return await self._all_settled((child,), stop_on_failure=False)

    async def add(self, specs: Sequence[ProcessSpec]) -> bool:
        """Start further processes, and what they need. As ``begin``."""
        self.know(specs)
        return await self.begin([spec.name for spec in specs])

    def know(self, specs: Sequence[ProcessSpec]) -> None:
        """Take in further processes without starting them (see :meth:`begin`)."""
        self._order = stop_order([*self._specs(), *specs])
        self._make(specs)
        self._save()

    async def remove(self, name: str) -> None:
        """Stop one process for good. Raises ProcessError while another needs it."""
        users = [spec.name for spec in self._specs() if name in spec.needs]
        if users:
            raise ProcessError(f"{name} is needed by {', '.join(users)}")
        await self.halt((name,))
        self._children.pop(name, None)
        self._order = stop_order(self._specs())
        self._save()

    @property
    def instance(self) -> str:
        """What all processes of this run carry in their environment."""
        return self._run_directory.instance

    @property
    def stopping(self) -> bool:
        """Whether everything is being stopped, or has been."""
        return self._stopping is not None

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """What is known here, running or not."""
        return tuple(self._specs())

    def _with_needs(self, names: Iterable[str]) -> tuple[Child, ...]:
        """The children of ``names`` and all they need, what is needed first."""
        wanted: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending += self._child(name).spec.needs
        return tuple(child for name, child in self._children.items() if name in wanted)

    def _users(self, child: Child) -> list[Child]:
        """Those that need ``child`` and run."""
        return [
            user
            for user in self._children.values()
            if child.spec.name in user.spec.needs and user.kept
        ]

    def _make(self, specs: Sequence[ProcessSpec]) -> tuple[Child, ...]:
        """Children of ``specs``, what is needed before what needs it."""
        for spec in sorted(specs, key=lambda spec: -self._order[spec.name]):
            needs = tuple(self._children[need] for need in spec.needs)
            self._children[spec.name] = Child(spec, needs, self._around)
        return tuple(self._children[spec.name] for spec in specs)

    async def _reclaim(self) -> None:
        for left in self._run_directory.leftovers():
            self._output.say(
                f"left over from an earlier run: {left.name or '?'} (pid {left.identity.pid})"
            )
        await asyncio.to_thread(self._run_directory.reclaim, self._output.say)

    async def _all_settled(
        self, children: tuple[Child, ...], *, stop_on_failure: bool = True
    ) -> bool:
        while self._stopping is None:
            failure = next((child.failure for child in children if child.failure), None)
            if failure is not None:
                if stop_on_failure:
                    await self.stop()
                raise failure
            if all(child.settled.is_set() for child in children):
                return True
            self._news.clear()
            await self._news.wait()
        await self._stopped.wait()
        return False

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stopping is None:
            self._run_directory.announce_stop()
            self._stopping = asyncio.create_task(self._stop(), name="stop")
            self._news.set()
        return self._stopping

    async def _stop(self) -> None:
        for child in self._children.values():
            child.let_be()
        reminder = asyncio.create_task(self._remind())
        try:
            for number in sorted(set(self._order.values())):
                leaving = [c for n, c in self._children.items() if self._order[n] == number]
                await asyncio.gather(*(child.stop() for child in leaving))
            await asyncio.to_thread(
                kill_carriers, self._run_directory.instance, say=self._output.say
            )
            if self._begun:
                self._run_directory.forget()
        finally:
            reminder.cancel()
            await self._death_watch.close()
            self._unlock(self._locked_here)
            self._stopped.set()

    async def _remind(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(_REMIND)
            still = [
                f"{status.name} (pid {status.identity.pid})"
                for status in self.status()
                if status.identity is not None
            ]
            waited = time.monotonic() - began
            if still:
                self._output.say(f"stopping for {waited:.0f} s, still running: {', '.join(still)}")

    def _unlock(self, locked_here: bool) -> None:
        """Give up the lock, if it was not the caller's before we came."""
        if locked_here:
            self._run_directory.unlock()
            self._locked_here = False

    def _save(self) -> None:
        try:
            self._run_directory.save(
                child.record(self._order[name]) for name, child in self._children.items()
            )
        except OSError as error:
            # The environment of the processes still tells the guard whose they are.
            self._output.say(f"cannot write {self._run_directory.state_path}: {error.strerror}")

    def _changed(self, status: ProcessStatus) -> None:
        self._news.set()
        if self._on_change is not None:
            self._on_change(status)

    def _specs(self) -> list[ProcessSpec]:
        return [child.spec for child in self._children.values()]

    def _child(self, name: str) -> Child:
        child = self._children.get(name)
        if child is None:
            raise ProcessError(f"there is no process {name}; there are {', '.join(self._children)}")
        return child
