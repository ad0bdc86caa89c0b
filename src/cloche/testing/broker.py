"""A real broker."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import redis

from cloche.broker.embedded.directory import quoted
from cloche.broker.embedded.server import bundled_server, find_server
from cloche.testing.server import ServerProcess


class BrokerProcess(ServerProcess):
    """A Valkey server on a free loopback port and a unix socket, in a temporary directory.

    ``config`` are further lines of its configuration; ``persistent`` switches on an
    append-only file that is synced at every write, so that ``kill`` loses nothing. ``program``
    is another server than the bundled one: redis-server, or a name like redis-sentinel, which
    makes it a sentinel.
    """

    kind = "broker"

    def __init__(
        self,
        *,
        password: str | None = None,
        config: Mapping[str, str | int] | None = None,
        persistent: bool = False,
        port: int | None = None,
        program: str | Path | None = None,
    ) -> None:
        super().__init__(port)
        self.password = password
        self.config = dict(config or {})
        self.persistent = persistent
        self._program = program or bundled_server() or find_server().path

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0."""
        return f"redis://{self._userinfo}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """``redis+socket://`` URL of database 0."""
        return f"redis+socket://{self._userinfo}{quote(str(self._socket))}?virtual_host=0"

    def client(self) -> redis.Redis:
        """A new client that decodes replies to str; the caller closes it."""
        return redis.Redis(
            port=self.port, password=self.password, decode_responses=True, socket_timeout=5
        )

    @property
    def _userinfo(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    @property
    def _socket(self) -> Path:
        return self.directory / "s"

    def _command(self) -> Sequence[str | Path]:
        configuration = self.directory / "server.conf"
        configuration.write_text(self._configuration())
        return [self._program, configuration]

    def _configuration(self) -> str:
        lines: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": quoted(str(self._socket)),
            "dir": quoted(str(self.directory)),
            "save": '""',
            "appendonly": "yes" if self.persistent else "no",
            "appendfsync": "always",
        }
        if self.password:
            lines["requirepass"] = quoted(self.password)
        lines |= self.config
        return "".join(f"{key} {value}\n" for key, value in lines.items())

    def _answers(self) -> bool:
        """Whether the socket answers an inline PING, be it to ask for a password."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            try:
                link.connect(str(self._socket))
                link.sendall(b"PING\r\n")
                return link.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False
