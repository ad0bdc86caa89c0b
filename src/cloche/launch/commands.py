"""What other terminals may ask of a running launcher, over its control socket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cloche.cluster.processes import processes_seen, tasks_of
from cloche.errors import CrashLoopError, NotRunningError, ProcessError
from cloche.launch.client import digests, given_workers
from cloche.launch.stack import RunningStack
from cloche.launch.workers import node_of
from cloche.process.control import Emit, Fields, Handler
from cloche.process.events import RestartedWorkers
from cloche.process.status import ProcessState, ProcessStatus
from cloche.settings import OriginCandidate, Resolved, reload, to_environ

#: Seconds between two words about what a stop waits for.
_REMIND = 1.0


class ControlCommands:
    """The handlers of one launcher. ``given`` is what it was started with; ``end`` stops
    everything (``now``: at once)."""

    def __init__(
        self, stack: RunningStack, given: Resolved, end: Callable[[bool], Awaitable[None]]
    ) -> None:
        self._stack = stack
        self._given = given
        self._workers = given_workers(given.settings)
        self._end = end
        self.started = False

    def handlers(self) -> Mapping[str, Handler]:
        """By the name in ``do``."""
        return {
            "start": self.start,
            "stop": self._noted(self.stop, "names"),
            "restart": self._noted(self.restart, "names"),
            "scale": self._noted(self.scale, "counts"),
            "ps": self.ps,
            "ready": self.ready,
            "ping": self.ping,
            "given": self.given,
        }

    def _noted(self, handler: Handler, key: str) -> Handler:
        """The same, with a line in the launcher's log about what was asked."""

        async def noted(request: Fields, emit: Emit) -> Fields:
            what = request.get(key) or "everything"
            names = " ".join(f"{n}={what[n]}" if isinstance(what, dict) else n for n in what)
            now = ", at once" if request.get("now") else ""
            self._stack.say(f"asked: {request['do']} {names if request.get(key) else what}{now}")
            return await handler(request, emit)

        return noted

    async def start(self, request: Fields, emit: Emit) -> Fields:
        """``names``, ``everything``, ``worker`` (name and options), ``settings`` (digests),
        ``workers`` (as the client's settings declare them)."""
        if self._stack.supervisor.stopping:
            raise NotRunningError("the launcher is stopping")  # who asks waits, and starts another
        self._same_application(request)
        with self._stack.hearing(_teller(emit)):
            await self._take_settings(request, emit)
            worker = request.get("worker")
            names = list(request.get("names", ()))
            if worker is not None:
                await self._stack.declare(worker["name"], worker["options"])
                names.append(worker["name"])
            if request.get("on_existing"):
                await self._stack.settle_existing(request["on_existing"])
            await self._stack.start(names, everything=bool(request.get("everything")))
        return self._overview()

    async def stop(self, request: Fields, emit: Emit) -> Fields:
        """``names`` (none: everything, the launcher too), ``now``, ``existing`` (those of
        others, too)."""
        now, names = bool(request.get("now")), list(request.get("names", ()))
        reminder = asyncio.create_task(self._remind(emit))
        try:
            with self._stack.hearing(_teller(emit)):
                if names:
                    await self._find(names)
                    await self._stack.stop(names, now=now)
                else:
                    if request.get("existing"):
                        await self._stack.settle_existing("adopt")
                    await self._stack.watch.stop_all(now=now)
                    await self._end(now)
        finally:
            reminder.cancel()
        return self._overview()

    async def restart(self, request: Fields, emit: Emit) -> Fields:
        """``names``, ``now``, and the client's settings as in ``start``."""
        self._same_application(request)
        with self._stack.hearing(_teller(emit)):
            await self._take_settings(request, emit)
            names = list(request.get("names", ()))
            await self._stack.restart(names, now=bool(request.get("now")))
        return self._overview()

    async def scale(self, request: Fields, emit: Emit) -> Fields:
        """``counts``: worker -> how many processes."""
        with self._stack.hearing(_teller(emit)):
            for name, count in request["counts"].items():
                await self._stack.scale(name, int(count))
        return self._overview()

    async def ps(self, request: Fields, emit: Emit) -> Fields:
        """Everything that runs, with what the broker knows of it."""
        stack = self._stack
        statuses, adopted = stack.status(), tuple(stack.watch)
        expected = [
            *(node_of(one.name) for one in statuses if _worker_ready(one, stack)),
            *(one.worker.name for one in adopted),
        ]
        hung = RestartedWorkers(stack.plan.settings.run_dir.absolute()).lately(time.time())
        seen = await asyncio.to_thread(
            processes_seen,
            stack.plan.app,
            statuses,
            [(one.name, one.worker) for one in adopted],
            expected,
            hung,
        )
        return {
            "launcher": os.getpid(),
            "app": stack.plan.settings.app,
            "processes": [row.fields() for row in seen.processes],
            "gaps": list(seen.gaps),
        }

    async def ping(self, request: Fields, emit: Emit) -> Fields:
        """Whether the first start has come to its end."""
        return {"started": self.started}

    async def given(self, request: Fields, emit: Emit) -> Fields:
        """The application and the settings it was started with, as variables."""
        app = {"app": OriginCandidate(self._given.settings.app, self._given.origin("app"))}
        return {"environ": to_environ({**app, **self._given.overrides(variables=True)})}

    async def ready(self, request: Fields, emit: Emit) -> Fields:
        """Whether all (``names``: these) that were started are ready. Raises CrashLoopError
        if one never will be."""
        names = self._stack.names(request.get("names", ()))
        statuses = [one for one in self._stack.status() if not names or one.name in names]
        lost = [one for one in statuses if one.state is ProcessState.CRASH_LOOP]
        if lost:
            last = "\n".join(f"    {line}" for line in lost[0].last_lines[-5:])
            raise CrashLoopError(f"{lost[0].name} was given up", why=f"its last lines:\n{last}")
        ready = {ProcessState.READY, *(() if names else (ProcessState.STOPPED,))}
        waiting = [
            {"name": one.name, "state": one.state.value, "last_lines": list(one.last_lines[-3:])}
            for one in statuses
            if one.state not in ready
        ]
        return {"ready": self.started and not waiting, "waiting": waiting}

    async def _find(self, names: Sequence[str]) -> None:
        """Adopt a worker of somebody else that is called by its node name."""
        try:
            self._stack.names(names)
        except ProcessError:
            if not any("@" in name for name in names):
                raise
            await self._stack.settle_existing("adopt", names)

    def _overview(self) -> Fields:
        processes = [
            {
                "name": one.name,
                "state": one.state.value,
                "pid": one.identity.pid if one.identity else None,
                "since": one.since,
                "restarts": one.restarts,
            }
            for one in self._stack.status()
        ]
        processes += [
            {
                "name": one.name,
                "state": "adopted",
                "pid": one.worker.pid,
                "since": one.worker.since,
                "restarts": 0,
            }
            for one in self._stack.watch
        ]
        return {"launcher": os.getpid(), "processes": processes}

    def _same_application(self, request: Fields) -> None:
        wanted, runs = request.get("app"), self._given.settings.app
        if wanted is not None and wanted != runs:
            raise ProcessError(
                f"{self._given.settings.run_dir} runs the application {runs}, not {wanted}",
                fix=f"stop it first, or give {wanted} a --run-dir of its own",
            )

    async def _take_settings(self, request: Fields, emit: Emit) -> None:
        """Take over declared workers that changed; say which other settings wait for a start."""
        told, mine = request.get("settings"), digests(self._given.settings)
        stale = [key for key in mine if told is not None and told.get(key) != mine[key]]
        if stale:
            emit({"say": f"until the launcher is started anew, {', '.join(stale)} stays as it is"})
        workers = request.get("workers")
        if workers is not None and workers != self._workers:
            own = await asyncio.to_thread(lambda: reload(self._given).settings)
            await self._stack.redeclare(workers, own=given_workers(own))
            self._workers = workers

    async def _remind(self, emit: Emit) -> None:
        while True:
            await asyncio.sleep(_REMIND)
            still = [
                {
                    "name": one.name,
                    "pid": one.identity.pid if one.identity else None,
                    "since": one.since,
                    "tasks": list(tasks_of(one)),
                }
                for one in self._stack.status()
                if one.state is ProcessState.STOPPING
            ]
            if still:
                emit({"still": still})


def _teller(emit: Emit) -> Callable[[ProcessStatus], None]:
    def tell(status: ProcessStatus) -> None:
        pid = status.identity.pid if status.identity else None
        emit({"name": status.name, "state": status.state.value, "pid": pid})

    return tell


def _worker_ready(status: ProcessStatus, stack: RunningStack) -> bool:
    return status.group in stack.plan.workers and status.state is ProcessState.READY
