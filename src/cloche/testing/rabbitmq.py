"""A real RabbitMQ."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from cloche.errors import NotReadyError
from cloche.testing.server import ServerProcess, free_port

#: Debian's script that becomes the server itself; the one on the PATH changes the user first.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
#: Debian's Erlang keeps it off the PATH.
_EPMD = "/usr/lib/erlang/erts-*/bin/epmd"
_USER, _PASSWORD = "guest", "guest"


class PortMapper(ServerProcess):
    """Erlang's name service (epmd), on the loopback, for one test server alone."""

    kind = "epmd"

    def _command(self) -> Sequence[str | Path]:
        return [_find_epmd(), "-address", "127.0.0.1", "-port", str(self.port)]

    def _answers(self) -> bool:
        return _listens(self.port)


class RabbitProcess(ServerProcess):
    """A RabbitMQ on a free loopback port, in a temporary directory; user ``guest``.

    A node of its own: name, cookie, data, logs and port mapper are nobody else's. ``config`` are
    further lines of ``rabbitmq.conf``. What it confirmed survives ``kill``. A start takes some
    five seconds, so share one among many tests and use queues of your own.
    """

    kind = "RabbitMQ"

    def __init__(
        self, *, config: Mapping[str, str | int] | None = None, port: int | None = None
    ) -> None:
        """Raises NotReadyError where RabbitMQ is not installed."""
        super().__init__(port)
        self.config = dict(config or {})
        self._mapper = PortMapper()
        self._distribution = free_port()
        if not _SERVER.exists():
            raise NotReadyError(
                "RabbitMQ is not installed.",
                why=f"There is no {_SERVER}.",
                fix="apt-get install rabbitmq-server",
            )

    @property
    def url(self) -> str:
        """``amqp://`` URL of the virtual host ``/``."""
        return f"amqp://{_USER}:{quote(_PASSWORD)}@127.0.0.1:{self.port}//"

    def start(self, *, wait: bool = True, timeout: float = 60) -> None:
        """Start it, on the same port and data as before; wait until it answers."""
        if not _listens(self._mapper.port):
            self._mapper.start()
        super().start(wait=wait, timeout=timeout)

    def close(self) -> None:
        """End it and its port mapper at once and remove their directories."""
        super().close()
        self._mapper.close()

    def control(self, *words: str) -> str:
        """What ``rabbitmqctl`` says (a second and more). Raises CalledProcessError."""
        tool = _SERVER.with_name("rabbitmqctl")
        return subprocess.run(
            [tool, "--quiet", *words],
            env=self._environ(),
            cwd=self.directory,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def _command(self) -> Sequence[str | Path]:
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(10))
            cookie.chmod(0o400)
            (self.directory / "plugins").write_text("[].")
            (self.directory / "rabbitmq.conf").write_text(self._configuration())
        variables = [f"{name}={value}" for name, value in self._environ().items()]
        return [shutil.which("env") or "/usr/bin/env", "-i", *variables, _SERVER]

    def _configuration(self) -> str:
        lines: dict[str, str | int] = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "log.console": "true",
            "log.file": "false",
            # Tests share the machine: a full one must not stop publishers.
            "disk_free_limit.absolute": "50MB",
            **self.config,
        }
        return "".join(f"{key} = {value}\n" for key, value in lines.items())

    def _environ(self) -> dict[str, str]:
        own = self.directory
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(own),  # where Erlang looks for the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._mapper.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "cloche-test@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONF_ENV_FILE": str(own / "none"),
            "RABBITMQ_CONFIG_FILE": str(own / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(own / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(own / "data"),
            "RABBITMQ_LOG_BASE": str(own / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(own / "pid"),
            # The script then becomes the server instead of watching over it: its pid is ours.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 1:1 "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _answers(self) -> bool:
        """Whether it greets: its first frame is a method, Connection.Start (AMQP 0-9-1, 2.2.4)."""
        with socket.socket() as link:
            link.settimeout(2)
            try:
                link.connect(("127.0.0.1", self.port))
                link.sendall(b"AMQP\x00\x00\x09\x01")
                return link.recv(1) == b"\x01"
            except OSError:
                return False


def _listens(port: int) -> bool:
    with socket.socket() as link:
        link.settimeout(1)
        return link.connect_ex(("127.0.0.1", port)) == 0


def _find_epmd() -> Path:
    found = shutil.which("epmd")
    if found:
        return Path(found)
    return max(Path("/").glob(_EPMD.lstrip("/")))
