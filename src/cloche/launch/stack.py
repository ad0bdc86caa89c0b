"""The running stack, and what commands do to it while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from cloche.cluster.existing import existing_workers
from cloche.errors import ProcessError
from cloche.launch.adopted import Adopted
from cloche.launch.existing import OnExisting, Say, resolve_existing
from cloche.launch.plan import Plan
from cloche.launch.pools import import_own_modules
from cloche.launch.worker_set import WorkerSet
from cloche.launch.workers import declared, from_options
from cloche.process.port import claim
from cloche.process.status import ProcessStatus
from cloche.settings import to_environ
from cloche.settings.model import WorkerSettings

Hear = Callable[[ProcessStatus], None]
#: Processes that run at most once and are not workers.
SINGLE = ("broker", "beat", "service", "dashboard")


class RunningStack:
    """The processes of one launcher by the names people use: a worker's name means all of
    its processes. Changes take turns; a stop of everything waits for nobody."""

    def __init__(self, worker_set: WorkerSet, say: Say) -> None:
        self.worker_set = worker_set
        self.supervisor = worker_set.supervisor
        self.watch = worker_set.watch
        self.say = say
        self._turn = asyncio.Lock()
        self._hearing: list[Hear] = []

    @property
    def plan(self) -> Plan:
        return self.worker_set.plan

    @contextmanager
    def hearing(self, hear: Hear) -> Any:
        """Call ``hear`` with each new status meanwhile."""
        self._hearing.append(hear)
        try:
            yield
        finally:
            self._hearing.remove(hear)

    def tell(self, status: ProcessStatus) -> None:
        """A process has a new status."""
        for hear in tuple(self._hearing):
            hear(status)

    async def start(self, wanted: Collection[str] = (), *, everything: bool = False) -> None:
        """Start what is named (nothing: workers and scheduler) and does not run yet.

        Raises ProcessError for an unknown name, PortTakenError, NotReadyError, CrashLoopError.
        """
        async with self._turn:
            names = self.names(wanted) if wanted else self.usual(everything=everything)
            missing = [name for name in names if self.watch.get(name) is None]
            self._claim_ports(missing)
            await self.supervisor.begin(missing)

    async def declare(self, name: str, options: Mapping[str, Any]) -> None:
        """Add or change a worker as the command line says. It is started by :meth:`start`."""
        one = await asyncio.to_thread(
            from_options, self.plan.app, self.plan.settings, name, options
        )
        async with self._turn:
            if name in SINGLE:
                raise ProcessError(f"{name} is not a worker", fix="choose another --name")
            self.worker_set.optional.add(name)
            await self.worker_set.become(one)

    async def redeclare(self, workers: Mapping[str, Any], *, own: Mapping[str, Any]) -> None:
        """Let the stack have exactly these workers (fields by name, as in the settings).

        ``own`` is what the launcher's own files and variables say now; where that differs,
        the processes are told by variable.
        """
        settings = self.plan.settings.model_copy(
            update={
                "workers": {name: WorkerSettings.model_validate(w) for name, w in workers.items()}
            }
        )
        wanted = await asyncio.to_thread(declared, self.plan.app, settings)
        async with self._turn:
            environ = dict(self.plan.environ)
            environ.pop("CLOCHE_WORKERS", None)
            if workers != own:
                environ |= to_environ({"workers": dict(workers)})
            self.worker_set.plan = replace(self.plan, settings=settings, environ=environ)
            for name in set(self.plan.workers) - set(wanted) - self.worker_set.optional:
                await self.worker_set.drop(name)
            for one in wanted.values():
                if one.name not in self.worker_set.optional:
                    await self.worker_set.become(one)

    async def stop(self, wanted: Collection[str], *, now: bool = False) -> None:
        """Stop what is named; it stays known and can be started again.

        But a worker of the command line, which nothing else declares, is forgotten.
        """
        names = self.names(wanted)
        async with self._turn:
            adopted = [name for name in names if self.watch.get(name) is not None]
            ours = [name for name in names if name not in adopted]
            dismissals = (self.worker_set.dismiss(name, now=now) for name in adopted)
            await asyncio.gather(self.supervisor.halt(ours, now=now), *dismissals)
            for name in self.worker_set.optional & set(wanted):
                by_settings = await asyncio.to_thread(declared, self.plan.app, self.plan.settings)
                await self.worker_set.forget(by_settings.get(name), name)

    async def restart(self, wanted: Collection[str] = (), *, now: bool = False) -> None:
        """Start anew what is named, or all that runs but the broker.

        Workers roll: a further process is ready before the first stops. ``now``: SIGKILL and
        start, all at once.
        """
        async with self._turn:
            names = self.names(wanted) if wanted else self.worker_set.running()
            for name in [name for name in names if self.watch.get(name) is not None]:
                await self.worker_set.replace_adopted(name, now=now)
                names.remove(name)
            if now:
                await asyncio.gather(*(self.supervisor.restart(name, now=True) for name in names))
                return
            specs = {spec.name: spec for spec in self.supervisor.specs}
            for group in dict.fromkeys(specs[name].group for name in names if specs[name].group):
                members = [name for name in names if specs[name].group == group]
                await self.worker_set.roll(self.plan.workers[group], members)
            for name in names:
                if not specs[name].group:
                    await self.supervisor.restart(name)

    async def scale(self, name: str, count: int) -> None:
        """Let a worker have ``count`` processes. Raises ProcessError for what is no worker."""
        if name not in self.plan.workers:
            known = ", ".join(self.plan.workers)
            why = f"{name} runs once" if name in SINGLE else f"there is no worker {name}"
            raise ProcessError(f"{name} cannot be scaled", why=why, fix=f"workers are: {known}")
        async with self._turn:
            await self.worker_set.resize(self.plan.workers[name].scaled(count))
            if count:
                await self.supervisor.begin(self.worker_set.members(name))

    def names(self, wanted: Collection[str]) -> list[str]:
        """The processes that ``wanted`` names: a worker's name, a process, a node name."""
        known = {spec.name: [spec.name] for spec in self.supervisor.specs}
        for one in self.watch:
            known[one.name] = [one.name]
            known.setdefault(one.worker.name, [one.name])
        for group in self.plan.workers:
            known[group] = self.worker_set.members(group) + [
                w.name for w in self.watch if w.group == group
            ]
        found: list[str] = []
        for name in wanted:
            plain = name if name in known else name.partition("@")[0]
            if plain not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ProcessError(
                    f"there is no process {name}", fix=f"{hint}there are: {', '.join(known)}"
                )
            found += [one for one in known[plain] if one not in found]
        return found

    def usual(self, *, everything: bool = False) -> list[str]:
        """What is started when nobody says what: workers, scheduler; ``everything``: pages too."""
        pages = () if everything else self.plan.webs()
        return [spec.name for spec in self.supervisor.specs if spec.name not in pages]

    def _claim_ports(self, names: Collection[str]) -> None:
        running = {one.name for one in self.supervisor.status() if one.identity is not None}
        pages = self.plan.webs()
        for name, web in pages.items():
            if name in names and name not in running:
                claim(web.host, web.port, spare={page.port for page in pages.values()})

    async def settle_existing(
        self, answer: OnExisting, names: Collection[str] | None = None
    ) -> None:
        """Look for workers that others started (only those ``names``) and do as said.

        Raises ExistingWorkerError and the broker connection's errors.
        """
        own = self.supervisor.instance
        found = await asyncio.to_thread(
            existing_workers, self.plan.app, import_own_modules, but=(own,)
        )
        watched = {one.worker.identity for one in self.watch}
        chosen = [
            one
            for one in found
            if one.identity not in watched and (names is None or one.name in names)
        ]
        stop = self.plan.settings.stop
        adopted = await asyncio.to_thread(resolve_existing, chosen, answer, stop, self.say)
        self.watch.add([Adopted(one) for one in adopted])

    async def settle_quietly(self, answer: OnExisting) -> None:
        """As :meth:`settle_existing`; what goes wrong is only told."""
        try:
            await self.settle_existing(answer)
        except Exception as error:  # noqa: BLE001 (any transport, any error)
            self.say(str(error))

    def status(self) -> tuple[ProcessStatus, ...]:
        """Every process of ours, those of one worker together."""
        found = self.supervisor.status()
        first: dict[str, int] = {}
        for number, one in enumerate(found):
            first.setdefault(one.group, number)
        return tuple(sorted(found, key=lambda one: first[one.group]))
