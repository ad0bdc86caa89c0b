"""A broker of our own: a Redis or Valkey server that keeps its data in the run directory.

It is described here and run by the launcher's supervisor::

    broker = EmbeddedBroker(run_dir / "broker")
    broker.reclaim()          # stop what an earlier run left behind
    supervise(broker.command())
    while not broker.ready(): ...
    app.conf.broker_url = broker.url
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import redis

from cloche.broker.connection.address import parse_address
from cloche.broker.connection.probe import client_of, loading_percent
from cloche.broker.embedded import reclaim
from cloche.broker.embedded.directory import DataDirectory, configuration
from cloche.broker.embedded.ports import free_port, is_free, taken
from cloche.broker.embedded.server import ServerProgram, Version, find_server
from cloche.broker.embedded.startup_diagnosis import startup_diagnosis
from cloche.errors import ClocheError
from cloche.records import Health

_SYNCED = {"always": "synced at every write", "everysec": "synced every second"}


class EmbeddedBroker:
    """One server of one data directory.

    Only one at a time: whoever makes it holds the run directory's lock. ``fsync`` is
    Redis's ``appendfsync``. With ``port`` None it listens where it did last time, if
    nobody else does now, so that URLs stay valid over restarts.
    """

    def __init__(
        self, directory: Path, *, fsync: str = "everysec", port: int | None = None
    ) -> None:
        self.directory = directory
        self.fsync = fsync
        self.asked_port = port
        self._files = DataDirectory(directory)

    @cached_property
    def server(self) -> ServerProgram:
        """The program that is run, found once."""
        return self.find_server()

    def find_server(self) -> ServerProgram:
        """The first usable program that can read the data already here. Raises BrokerError."""
        writer = str(self._files.state().get("server", ""))
        return find_server(written_by=Version.parse(writer) if self._files.has_data else None)

    def reclaim(self) -> reclaim.Reclaimed | None:
        """Stop the server that an earlier run left on this directory; None if there is none.

        To be called before ``command``. A server that is not ours is never touched.
        Raises ProcessError if ours does not go away.
        """
        return reclaim.reclaim(self._files)

    @cached_property
    def port(self) -> int:
        """The loopback port. Raises PortTakenError if the one asked for is in use."""
        if self.asked_port is not None:
            if not is_free(self.asked_port):
                raise taken(self.asked_port, self._files.path)
            return self.asked_port
        last = self._files.state().get("port")
        return last if isinstance(last, int) and is_free(last) else free_port(str(self._files.path))

    def command(self) -> list[str]:
        """The command that runs the server in the foreground; writes its configuration.

        Raises BrokerError (no program, or the directory cannot be used) and PortTakenError.
        """
        server = self.server
        self._files.make()
        text = configuration(
            directory=self._files.path,
            pid_file=self._files.pid_file,
            socket=self._files.socket(),
            port=self.port,
            password=self._files.password(),
            fsync=self.fsync,
        )
        self._files.write(self._files.config, text)
        self._files.note(port=self.port, server=str(server.version))
        return [str(server.path), str(self._files.config)]

    @property
    def url(self) -> str:
        """The broker URL for everybody on this machine who knows the password."""
        return f"redis://:{self._files.password()}@127.0.0.1:{self.port}/0"

    def running_url(self) -> str | None:
        """The broker URL of the server that runs on this directory now, or None."""
        port = self._files.state().get("port")
        if not isinstance(port, int) or not self.ready():
            return None
        return f"redis://:{self._files.password()}@127.0.0.1:{port}/0"

    @property
    def unix_url(self) -> str:
        """The same server over its unix socket, for this user's processes."""
        socket = quote(str(self._files.socket()))
        return f"redis+socket://:{self._files.password()}@{socket}?virtual_host=0"

    def readiness(self) -> Health:
        """Whether it answers now, and if not what it is doing.

        Asked over its socket: a server that cannot have its port does not run, and a
        stranger on the port does not get the password.
        """
        begun = time.perf_counter()
        ok, detail = self._ask()
        return Health("broker", ok, detail, time.perf_counter() - begun)

    def ready(self) -> bool:
        """Whether it answers and has loaded all its data."""
        return self.readiness().ok

    def startup_diagnosis(self, last_lines: list[str]) -> ClocheError:
        """Why the server ended, read from its last log lines, and what to do about it."""
        return startup_diagnosis(last_lines, self.server, self._files.path, self.port)

    @property
    def survives(self) -> bool:
        """Whether messages survive a stop of the server: they are in its append-only file."""
        return True

    def describe(self) -> str:
        """One line for the banner."""
        return (
            f"embedded {self.server.version}, data in {self.directory} (AOF, {_SYNCED[self.fsync]})"
        )

    def _ask(self) -> tuple[bool, str]:
        with client_of(parse_address(self.unix_url), connect_timeout=1, socket_timeout=1) as client:
            try:
                client.ping()
            except redis.exceptions.BusyLoadingError:
                return False, f"still loading: {loading_percent(client) or 'just begun'}"
            except (redis.RedisError, OSError) as error:
                return False, str(error)
        return True, f"{self.server.version} on port {self.port}"
