"""The workers of a running stack: which are declared, their processes, who stands in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cloche.errors import CrashLoopError, NotReadyError, ProcessError
from cloche.launch.adopted import Adopted, Watch
from cloche.launch.existing import Say
from cloche.launch.plan import Plan
from cloche.launch.workers import Declared, labels
from cloche.process.spec import ProcessSpec
from cloche.process.status import ProcessState
from cloche.process.supervisor import Supervisor


class WorkerSet:
    """Changes workers while they run. ``optional`` are those of the command line: declared by
    no setting, and not dropped because none declares them."""

    def __init__(
        self,
        plan: Plan,
        supervisor: Supervisor,
        adopted: Sequence[Adopted],
        say: Say,
        optional: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.supervisor = supervisor
        self.optional = set(optional)
        self.watch = Watch(adopted, plan.settings.stop, say, self._stand_in_ended)
        self._say = say
        self._later: set[asyncio.Task[Any]] = set()

    def running(self) -> list[str]:
        """Every process that runs, also those that stand in, but the broker."""
        states = (ProcessState.STOPPED, ProcessState.STOPPING)
        ours = [one.name for one in self.supervisor.status() if one.state not in states]
        return [*(name for name in ours if name != "broker"), *(one.name for one in self.watch)]

    def members(self, group: str) -> list[str]:
        """The processes of a worker that are ours."""
        return [spec.name for spec in self.supervisor.specs if spec.group == group]

    async def become(self, one: Declared) -> None:
        """Let the stack have this worker, as it is declared now."""
        before = self.plan.workers.get(one.name)
        if before == one:
            return
        await self.resize(one)
        if before is None or (before.worker, before.arguments) == (
            one.scaled(before.count).worker,
            one.arguments,
        ):
            return
        running = [name for name in self.members(one.name) if name in self.running()]
        if running:
            self._say(f"{one.name} is declared otherwise now: restarting it")
            await self.roll(one, running)

    async def resize(self, one: Declared) -> None:
        """Have the right number of processes known; new ones are not started, spare ones stop."""
        stands = [w.label for w in self.watch if w.group == one.name]
        members = self.members(one.name)
        wanted = labels(one.name, one.count, (*stands, *members))
        self._note(one)
        for name in members:
            if name not in wanted:
                await self.supervisor.remove(name)
        for name in stands:
            if name not in wanted:
                await self.dismiss(name)
        new = [name for name in wanted if name not in (*members, *stands)]
        self.supervisor.know([self.plan.worker(one, name) for name in new])

    async def roll(self, one: Declared, members: Sequence[str]) -> None:
        """Replace ``members`` one by one while a spare process consumes in their place."""
        present = [*self.members(one.name), *(w.label for w in self.watch if w.group == one.name)]
        (spare,) = set(labels(one.name, len(present) + 1, present)) - set(present)
        try:
            # A spare that ends at once tells that the new code does not run: no second try.
            first = replace(self.plan.worker(one, spare), crash_limit=1)
            if not await self.supervisor.add([first]):
                return
            for name in members:
                await self.supervisor.restart(name, self.plan.worker(one, name))
        except (NotReadyError, CrashLoopError) as error:
            raise NotReadyError(
                f"the restart of {one.name} was given up: {error.what}",
                why=error.why,
                fix="the processes not yet replaced go on as they were",
            ) from error
        finally:
            if not self.supervisor.stopping:
                await self.supervisor.remove(spare)

    async def forget(self, one: Declared | None, name: str) -> None:
        """Have a worker of the command line no more, or as the settings declare it (``one``)."""
        self.optional.discard(name)
        if one is None:
            await self.drop(name)
        else:
            await self.resize(one)

    async def drop(self, name: str) -> None:
        """Have this worker no more."""
        self._say(f"{name} is no longer declared")
        for label in self.members(name):
            await self.supervisor.remove(label)
        for one in self.watch:
            if one.group == name:
                await self.dismiss(one.name)
        self.plan = replace(
            self.plan, workers={k: v for k, v in self.plan.workers.items() if k != name}
        )

    def _note(self, one: Declared) -> None:
        self.plan = replace(self.plan, workers={**self.plan.workers, one.name: one})

    async def dismiss(self, name: str, *, now: bool = False) -> None:
        """Stop an adopted worker; the process it stood in for is known from now on."""
        one = self.watch.get(name)
        if one is None:
            return
        if not await self.watch.stop(name, now=now):
            raise ProcessError(f"pid {one.worker.pid} ({name}) does not stop")
        self._know_instead(one)

    async def replace_adopted(self, name: str, *, now: bool) -> None:
        """Stop an adopted worker and start the process it stood in for."""
        one = self.watch.get(name)
        await self.dismiss(name, now=now)
        if one is not None and one.label:
            await self.supervisor.begin((one.label,))

    def _know_instead(self, one: Adopted) -> list[ProcessSpec]:
        worker = self.plan.workers.get(one.group)
        specs = [self.plan.worker(worker, one.label)] if worker and one.label else []
        self.supervisor.know(specs)
        return specs

    def _stand_in_ended(self, one: Adopted) -> None:
        """An adopted worker went away by itself: the one it stood in for takes its place."""
        self._say(f"the adopted worker {one.worker.name} (pid {one.worker.pid}) has ended")
        if self.supervisor.stopping:
            return
        for spec in self._know_instead(one):
            self._say(f"starting {spec.name} in its place")
            task = asyncio.create_task(self._begin_quietly(spec.name))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _begin_quietly(self, name: str) -> None:
        try:
            await self.supervisor.begin((name,))
        except ProcessError as error:
            self._say(str(error))
