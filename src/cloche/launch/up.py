"""``cloche up``: everything a background-job system needs, in one command."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from importlib import import_module

from cloche.errors import BrokerError, ClocheError, CrashLoopError, NotReadyError
from cloche.launch import collector
from cloche.launch.banner import banner
from cloche.launch.broker import Answer, Ask, Broker, broker_spec, settle_broker
from cloche.launch.environment import Environment, agree, child_environ, load_environment
from cloche.launch.plan import Plan, plan
from cloche.launch.watching import watched
from cloche.launch.workers import unheard_queues
from cloche.process.output import Output
from cloche.process.port import claim
from cloche.process.run_directory import RunDirectory
from cloche.process.status import ProcessState, ProcessStatus
from cloche.process.supervisor import Supervisor
from cloche.settings import Resolved, Settings

#: Exit code of a stop that was not waited for, 128 + SIGINT as shells count.
AT_ONCE = 130


class Up:
    """One run of everything. ``ask`` decides about a broker that cannot be used.

    ``begun`` is the monotonic time from which a start is counted.
    """

    def __init__(
        self, resolved: Resolved, output: Output, *, begun: float, ask: Ask | None = None
    ) -> None:
        self._given = resolved
        self._output = output
        self._ask = ask
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
        directory.lock()
        try:
            directory.reclaim(self._output.say)
            claim_ports(environment.settings)
            broker = settle_broker(environment.settings, self._output.say, self._timed(self._ask))
            return asyncio.run(self._serve(agree(environment, broker.url), broker, directory))
        finally:
            directory.unlock()

    async def _serve(
        self, environment: Environment, broker: Broker, directory: RunDirectory
    ) -> int:
        collector.resume()
        what = self._plan(environment, broker)
        supervisor = Supervisor(
            what.specs, run_directory=directory, output=self._output, on_change=self._tell
        )
        self._listen(supervisor)
        try:
            if await self._start(supervisor, environment.settings):
                self._greet(environment, broker, what)
                await watched(environment.app, environment.settings, supervisor, self._output.say)
        except (NotReadyError, CrashLoopError) as error:
            raise _explained(error, broker, supervisor) from error
        except BaseException:
            supervisor.kill()
            raise
        self._output.say("stopped")
        return AT_ONCE if self._hurry else 0

    async def _start(self, supervisor: Supervisor, settings: Settings) -> bool:
        """Start the processes and migrate the database at the same time.

        A database that cannot be used is the reason to tell, not the service that ends
        because of it.
        """
        starting = asyncio.create_task(supervisor.start())
        migration = asyncio.create_task(asyncio.to_thread(migrate, settings))
        await asyncio.wait((starting, migration), return_when=asyncio.FIRST_EXCEPTION)
        if migration.done() and migration.exception() is not None:
            await supervisor.stop()
            await asyncio.wait((starting,))
            await migration
        return await starting

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

    def _plan(self, environment: Environment, broker: Broker) -> Plan:
        environ = child_environ(environment.resolved, broker.url)
        ours = broker.embedded
        most = plan(environment.app, environment.settings, environ, broker=ours is not None)
        if ours is None:
            return most
        return replace(most, specs=(broker_spec(ours), *most.specs))

    def _listen(self, supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        stops: set[asyncio.Task[None]] = set()

        def asked(name: str) -> None:
            if stops:
                self._hurry = True
                self._output.say(f"{name} again: stopping at once")
                supervisor.kill()
                return
            self._output.say(f"{name}: stopping; once more to stop at once")
            stops.add(loop.create_task(supervisor.stop()))

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, asked, number.name)

    def _tell(self, status: ProcessStatus) -> None:
        if status.state is ProcessState.CRASH_LOOP:
            self._output.say(
                f"{status.name} ended again and again and is given up "
                f"(exit code {status.exit_code}); the others go on"
            )

    def _greet(self, environment: Environment, broker: Broker, what: Plan) -> None:
        workers = {
            name: f"{worker.processes} × {worker.pool}, {worker.concurrency} at once"
            for name, worker in what.workers.items()
        }
        took = time.monotonic() - self._begun - self._thinking
        self._output.say(f"ready in {took:.1f} s")
        for line in banner(environment.resolved, broker, what.pages, workers):
            self._output.say(line)
        unheard = unheard_queues(environment.app, environment.settings)
        if unheard:
            self._output.say(f"no worker of this run consumes {', '.join(unheard)}")
        self._output.say("Ctrl-C stops everything")


def claim_ports(settings: Settings) -> None:
    """Make sure the web pages can have their ports. Raises PortTakenError."""
    pages = [web for web in (settings.service, settings.dashboard) if web.enabled]
    for web in pages:
        claim(web.host, web.port, spare={page.port for page in pages})


def migrate(settings: Settings) -> None:
    """Bring the database up to date. Raises DatabaseError.

    Imported in the thread that runs it: SQLAlchemy takes 0.3 s, in which the processes
    already start (the service, which needs the tables, waits for the same lock).
    """
    import_module("cloche.launch.migration").migrate(settings)


def _explained(
    error: NotReadyError | CrashLoopError, broker: Broker, supervisor: Supervisor
) -> ClocheError:
    """The broker's end is told in plain language; it knows its own log."""
    if broker.embedded is not None:
        for status in supervisor.status():
            if status.name == "broker" and status.exit_code not in (None, 0, -signal.SIGTERM):
                return broker.embedded.downfall(list(status.last_lines))
    return error
