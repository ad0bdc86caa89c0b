"""A real PostgreSQL."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import URL

from cloche.errors import NotReadyError
from cloche.testing.server import ServerProcess

#: Where Debian keeps the programs of each major version, off the PATH.
_DEBIAN = Path("/usr/lib/postgresql")
#: The line of postmaster.pid that tells how far the server is (miscadmin.h,
#: LOCK_FILE_LINE_PM_STATUS), counted from 0.
_STATUS_LINE = 7
#: A cluster nobody will miss: losing it to a power failure is fine.
_CARELESS = {"fsync": "off", "full_page_writes": "off"}


class PostgresProcess(ServerProcess):
    """A PostgreSQL on a free loopback port and a unix socket, in a temporary directory.

    Its superuser is ``postgres`` with a random ``password``. ``config`` are further settings;
    ``durable`` keeps fsync on; without it a crash of the machine loses data, while kill -9 of
    the server loses nothing in either case.

    PostgreSQL refuses to run as root: root's tests run it as ``postgres``, else ``nobody``.
    """

    kind = "PostgreSQL"
    graceful = signal.SIGINT  # SIGTERM would wait for all clients to leave
    quick = signal.SIGQUIT  # SIGKILL would leave its shared memory behind

    def __init__(
        self,
        *,
        config: Mapping[str, str | int] | None = None,
        durable: bool = False,
        port: int | None = None,
    ) -> None:
        """Raises NotReadyError where PostgreSQL is not installed."""
        super().__init__(port)
        self.password = secrets.token_hex(8)
        self.config = {} if durable else dict(_CARELESS)
        self.config |= {key: str(value) for key, value in (config or {}).items()}
        self.user = _other_user()
        self._programs = find_programs()

    @property
    def url(self) -> str:
        """``postgresql://`` URL of the database ``postgres``."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """``postgresql://`` URL of a database, the password in it."""
        url = URL.create(
            "postgresql", "postgres", self.password, "127.0.0.1", self.port, database=database
        )
        return url.render_as_string(hide_password=False)

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a new database, a copy of ``template``; dropped with all its connections.

        Needs ``pip install 'cloche[postgres]'``, as `execute` does.
        """
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url_of(name)
        finally:
            self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """One statement of the superuser, in the database ``postgres``, outside transactions."""
        engine = create_engine(
            self.url.replace("postgresql:", "postgresql+psycopg:", 1),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def kill(self) -> None:
        """kill -9 of the server; its processes follow by themselves, and are waited for."""
        children = psutil.Process(self.pid).children(recursive=True)
        super().kill()
        deadline = time.monotonic() + 10
        while any(map(_runs, children)) and time.monotonic() < deadline:
            time.sleep(0.002)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _command(self) -> Sequence[str | Path]:
        if not self._data.exists():
            self._make_cluster()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            **self.config,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [self._programs / "postgres", "-D", self._data, *options]

    def _make_cluster(self) -> None:
        secret = self.directory / "password"
        secret.write_text(self.password)
        options = ["--no-sync", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-U", "postgres"]
        made = subprocess.run(
            [self._programs / "initdb", *options, f"--pwfile={secret}", self._data],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=self.user.pw_uid if self.user else None,
            group=self.user.pw_gid if self.user else None,
            extra_groups=[] if self.user else None,
        )
        secret.unlink()
        if made.returncode:
            raise NotReadyError("initdb failed", why=made.stderr[-2000:])

    def _answers(self) -> bool:
        """Whether its lock file says so; a killed predecessor may have left another one."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(lines) <= _STATUS_LINE:
            return False
        return lines[0] == str(self.pid) and lines[_STATUS_LINE].strip() == "ready"


def find_programs() -> Path:
    """The directory of ``initdb`` and ``postgres``: by the PATH, else Debian's newest.

    Raises NotReadyError where there is none.
    """
    found = [
        Path(path).resolve().parent for path in map(shutil.which, ("pg_ctl", "initdb")) if path
    ]
    versions = sorted(_DEBIAN.glob("*/bin"), key=lambda path: -_number(path.parent.name))
    for directory in (*found, *versions):
        if all((directory / name).exists() for name in ("initdb", "postgres")):
            return directory
    raise NotReadyError(
        "PostgreSQL is not installed.",
        why=f"There is no initdb and postgres on the PATH or in {_DEBIAN}/*/bin.",
        fix="apt-get install postgresql",
    )


def _runs(process: psutil.Process) -> bool:
    """Whether it is more than a zombie that nobody has collected yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _number(version: str) -> float:
    return float(version) if version.replace(".", "", 1).isdigit() else 0


def _other_user() -> pwd.struct_passwd | None:
    """Whom root runs it as; None: we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
