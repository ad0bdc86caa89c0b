"""The launcher: ``cloche up`` in a terminal, ``cloche start`` behind one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from celery import Celery

from cloche.cluster.existing import ExistingWorker, existing_workers
from cloche.errors import (
    BrokerError,
    ClocheError,
    CrashLoopError,
    NotReadyError,
)
from cloche.launch import collector
from cloche.launch import existing as on_existing
from cloche.launch.adopted import assign
from cloche.launch.banner import banner
from cloche.launch.broker import Answer, Ask, SettledBroker, broker_spec, resolve_broker
from cloche.launch.commands import ControlCommands
from cloche.launch.environment import (
    Environment,
    agree,
    child_environ,
    differs,
    load_environment,
)
from cloche.launch.existing import DEFAULT, OnExisting, resolve_existing
from cloche.launch.plan import Plan, plan
from cloche.launch.pools import import_own_modules, pool_note
from cloche.launch.stack import RunningStack
from cloche.launch.watchdog import WorkerWatchdog
from cloche.launch.worker_set import WorkerSet
from cloche.launch.workers import from_options, unheard_queues
from cloche.process.control import SOCKET, ControlServer
from cloche.process.output import Output
from cloche.process.port import claim
from cloche.process.run_directory import RunDirectory
from cloche.process.status import ProcessState, ProcessStatus
from cloche.process.supervisor import Supervisor
from cloche.process.systemd import SystemdWatchdog, notify
from cloche.settings import Resolved, Settings

#: Seconds between two words about how many processes are ready.
_STATUS_EVERY = 1.0

#: Exit code of a stop that was not waited for, 128 + SIGINT as shells count.
AT_ONCE = 130


async def watched(
    app: Celery, settings: Settings, supervisor: Supervisor, say: Callable[[str], None]
) -> None:
    """Return when the supervisor's stop has been completed.

    Meanwhile hung workers are found, changed code is loaded (``reload.enabled``), and a service
    manager above us is told ``READY=1``, how many processes are ready, and ``WATCHDOG=1`` as
    long as this loop turns.
    """
    notify("READY=1")
    tasks = [
        asyncio.create_task(WorkerWatchdog(app, settings, supervisor, say).run()),
        asyncio.create_task(_tell(supervisor)),
    ]
    if settings.reload.enabled:  # an extra, imported by who wants it
        reloading = import_module("cloche.launch.reload")
        tasks.append(asyncio.create_task(reloading.Reloader(settings, supervisor, say).run()))
    try:
        await supervisor.run()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(supervisor: Supervisor) -> None:
    life, told = SystemdWatchdog(), ""
    pause = min(_STATUS_EVERY, (life.period or _STATUS_EVERY) / 2)
    while True:
        life.give()
        status = supervisor.status()
        ready = sum(one.state == "ready" for one in status)
        stopping = any(one.state == "stopping" for one in status)
        words = "stopping" if stopping else f"{ready} of {len(status)} processes are ready"
        if words != told:
            told = words
            notify(f"STOPPING=1\nSTATUS={words}" if stopping else f"STATUS={words}")
        await asyncio.sleep(pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What a launcher starts at first. ``names`` empty: workers and scheduler, and with
    ``everything`` the pages too. ``worker`` is one of the command line: name and options."""

    names: tuple[str, ...] = ()
    everything: bool = True
    worker: tuple[str, dict[str, Any]] | None = None
    on_existing: OnExisting = DEFAULT
    detached: bool = False


class Up:
    """One run. ``ask`` decides about a broker that cannot be used, ``ask_existing`` about
    workers that run already (without it ``wanted.on_existing`` does).

    ``begun`` is the monotonic time from which a start is counted.
    """

    def __init__(
        self,
        resolved: Resolved,
        output: Output,
        *,
        begun: float,
        wanted: StackOptions | None = None,
        ask: Ask | None = None,
        ask_existing: on_existing.Ask | None = None,
    ) -> None:
        self._given = resolved
        self._output = output
        self._wanted = wanted or StackOptions()
        self._ask = ask
        self._ask_existing = ask_existing
        self._begun = begun
        self._hurry = False
        self._thinking = 0.0

    def run(self) -> int:
        """Run until Ctrl-C or SIGTERM; the exit code: 0, or 130 when it was not waited for.

        Raises ClocheError with what kept it from starting; nothing is left running then.
        """
        # Outside the event loop, so that Ctrl-C ends a wait for the broker at once.
        environment = load_environment(self._given)
        directory = RunDirectory(environment.settings.run_dir)
        directory.lock(say=self._output.say)
        try:
            directory.reclaim(self._output.say)
            claim_ports(environment.settings, self._wanted)
            broker = resolve_broker(environment.settings, self._output.say, self._timed(self._ask))
            where = "the embedded broker" if broker.embedded else "the broker found here"
            environment = agree(environment, broker.url, where=where)
            existing: tuple[ExistingWorker, ...] = ()
            if broker.embedded is None:  # an embedded one does not run yet
                existing = self._settle_existing(environment, ask=self._ask_existing)
            return asyncio.run(self._serve(environment, broker, directory, existing))
        finally:
            directory.unlock()

    async def _serve(
        self,
        environment: Environment,
        broker: SettledBroker,
        directory: RunDirectory,
        existing: tuple[ExistingWorker, ...],
    ) -> int:
        collector.resume()
        what = self._plan(environment, broker)
        adopted = assign(environment.app, existing, what.workers)
        taken = {one.label for one in adopted}
        supervisor = Supervisor(
            [spec for spec in what.specs if spec.name not in taken],
            run_directory=directory,
            output=self._output,
            on_change=lambda status: self._tell(stack, status),
        )
        optional = (self._wanted.worker[0],) if self._wanted.worker else ()
        say = self._output.say
        stack = RunningStack(WorkerSet(what, supervisor, adopted, say, optional), say)
        commands = ControlCommands(stack, self._given, lambda now: self._end(supervisor, now=now))
        control = ControlServer(directory.socket_path(SOCKET), commands.handlers())
        settling: asyncio.Task[None] | None = None
        self._listen(supervisor)
        try:
            await control.start()
            if await self._start(stack, environment.settings):
                stack.watch.start()
                self._greet(environment, broker, stack)
                commands.started = True
                if broker.embedded is not None:  # before, nobody could have been asked
                    settling = asyncio.create_task(
                        stack.settle_quietly(self._wanted.on_existing), name="settle"
                    )
                await watched(environment.app, environment.settings, supervisor, self._output.say)
        except (NotReadyError, CrashLoopError) as error:
            raise _explained(error, broker, supervisor) from error
        except BaseException:
            supervisor.kill()
            raise
        finally:
            if settling is not None:
                settling.cancel()
            stack.watch.close()
            await control.close()
        for one in stack.watch:
            self._output.say(f"{one.worker.name} (pid {one.worker.pid}) was adopted and goes on")
        self._output.say("stopped")
        return AT_ONCE if self._hurry else 0

    async def _start(self, stack: RunningStack, settings: Settings) -> bool:
        """Start the processes and migrate the database at the same time.

        A database that cannot be used is the reason to tell, not the service that ends
        because of it.
        """
        supervisor = stack.supervisor
        starting = asyncio.create_task(supervisor.start(only=self._first(stack)))
        migration = asyncio.create_task(asyncio.to_thread(migrate, settings))
        await asyncio.wait((starting, migration), return_when=asyncio.FIRST_EXCEPTION)
        if migration.done() and migration.exception() is not None:
            await supervisor.stop()
            await asyncio.wait((starting,))
            await migration
        return await starting

    def _first(self, stack: RunningStack) -> list[str]:
        """The processes to start with."""
        wanted = self._wanted
        asked = [*wanted.names, *((wanted.worker[0],) if wanted.worker else ())]
        names = stack.names(asked) if asked else stack.usual(everything=wanted.everything)
        return [name for name in names if stack.watch.get(name) is None]

    def _settle_existing(
        self, environment: Environment, ask: on_existing.Ask | None
    ) -> tuple[ExistingWorker, ...]:
        """Find workers that run already and do as said; returns those to adopt."""
        found = existing_workers(environment.app, import_own_modules)
        answer = self._wanted.on_existing
        if found and ask is not None:
            begun = time.monotonic()
            self._output.flush()
            answer = ask(found)
            self._thinking += time.monotonic() - begun
        return resolve_existing(found, answer, environment.settings.stop, self._output.say)

    def _timed(self, ask: Ask | None) -> Ask | None:
        """``ask``, its time taken: a person's thinking is no part of a start."""
        if ask is None:
            return None

        def timed(error: BrokerError) -> Answer:
            begun = time.monotonic()
            self._output.flush()
            try:
                return ask(error)
            finally:
                self._thinking += time.monotonic() - begun

        return timed

    def _plan(self, environment: Environment, broker: SettledBroker) -> Plan:
        environ = child_environ(environment.resolved)
        own = None if broker.embedded is None else broker_spec(broker.embedded)
        what = plan(environment.app, environment.settings, environ, own_broker=own)
        if self._wanted.worker is None:
            return what
        one = from_options(environment.app, environment.settings, *self._wanted.worker)
        return replace(what, workers={**what.workers, one.name: one})

    def _listen(self, supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        stops: set[asyncio.Task[None]] = set()

        def asked(name: str) -> None:
            if stops:
                self._output.say(f"{name} again: stopping at once")
            else:
                self._output.say(f"{name}: stopping; once more to stop at once")
            stops.add(loop.create_task(self._end(supervisor, now=bool(stops))))

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, asked, number.name)

    async def _end(self, supervisor: Supervisor, *, now: bool) -> None:
        """Stop everything, or (``now``) kill it."""
        if now:
            self._hurry = True
            supervisor.kill()
        await supervisor.stop()

    def _tell(self, stack: RunningStack, status: ProcessStatus) -> None:
        stack.tell(status)
        if status.state is ProcessState.CRASH_LOOP:
            self._output.say(
                f"{status.name} ended again and again and is given up "
                f"(exit code {status.exit_code}); the others go on"
            )

    def _greet(self, environment: Environment, broker: SettledBroker, stack: RunningStack) -> None:
        what = stack.plan
        started = {one.group for one in stack.status() if one.state is not ProcessState.STOPPED}
        workers = {
            name: f"{one.count} × {one.worker.pool}, {one.worker.concurrency} at once"
            for name, one in what.workers.items()
            if name in started
        }
        workers |= {one.name: f"adopted: {one.worker.describe()}" for one in stack.watch}
        pages = {name: url for name, url in what.pages.items() if name in started}
        took = time.monotonic() - self._begun - self._thinking
        self._output.say(f"ready in {took:.1f} s")
        for line in banner(environment, broker, pages, workers):
            self._output.say(line)
        for note in (differs(environment), pool_note(environment.app, what.settings)):
            if note:
                self._output.say(note)
        unheard = unheard_queues(environment.app, what.settings)
        if unheard:
            self._output.say(f"no worker of this run consumes {', '.join(unheard)}")
        if not self._wanted.detached:
            self._output.say("Ctrl-C stops everything")


def claim_ports(settings: Settings, wanted: StackOptions) -> None:
    """Make sure the web pages can have their ports. Raises PortTakenError."""
    both = {"service": settings.service, "dashboard": settings.dashboard}
    pages = {name: web for name, web in both.items() if web.enabled}
    chosen = wanted.names or wanted.worker or not wanted.everything
    for name, web in pages.items():
        if name in wanted.names or not chosen:
            spare = {page.port for page in pages.values()}
            claim(web.host, web.port, spare, setting=f"{name}.port")


def migrate(settings: Settings) -> None:
    """Bring the database up to date, if anything is kept in it. Raises DatabaseError.

    Imported in the thread that runs it: SQLAlchemy takes 0.3 s, in which the processes
    already start (the service, which needs the tables, waits for the same lock).
    """
    if settings.keeps_rows:
        import_module("cloche.database.engine").migrate(settings)


def _explained(
    error: NotReadyError | CrashLoopError, broker: SettledBroker, supervisor: Supervisor
) -> ClocheError:
    """The broker's end is told in plain language; it knows its own log."""
    if broker.embedded is not None:
        for status in supervisor.status():
            if status.name == "broker" and status.exit_code not in (None, 0, -signal.SIGTERM):
                return broker.embedded.startup_diagnosis(list(status.last_lines))
    return error
