"""The data directory of an embedded broker: private, with its password, state and socket."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any

from cloche.errors import BrokerError, BrokerFault

#: sun_path holds 108 bytes on Linux and 104 on macOS, the last one a NUL (unix(7)).
_LONGEST_SOCKET_PATH = 103


class DataDirectory:
    """Files of one embedded broker, all readable by their owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config = self.path / "server.conf"
        self.pid_file = self.path / "server.pid"
        self._password = self.path / "password"
        self._state = self.path / "broker.json"

    def make(self) -> None:
        """Create it, or close an existing one to others. Raises BrokerError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(13, "not writable", str(self.path))
        except OSError as error:
            raise self._unusable(error) from error

    @property
    def has_data(self) -> bool:
        """Whether a server has kept something here."""
        # os.path: False where we may not look; `make` tells about that.
        return any(os.path.exists(self.path / name) for name in ("appendonlydir", "appendonly.aof"))

    def password(self) -> str:
        """The server's password, made on first use and kept over restarts."""
        try:
            kept = self._password.read_text("ascii").strip()
        except FileNotFoundError:
            kept = ""
        except OSError as error:
            raise self._unusable(error) from error
        if not kept:
            kept = secrets.token_urlsafe(32)  # needs no quoting in a URL
            self.write(self._password, kept + "\n")
        return kept

    def state(self) -> dict[str, Any]:
        """What the last run noted: ``port`` and the ``server`` that wrote the data."""
        try:
            noted = json.loads(self._state.read_bytes())
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def note(self, **facts: Any) -> None:
        """Remember ``facts`` for the next run."""
        self.write(self._state, json.dumps(self.state() | facts) + "\n")

    def write(self, path: Path, text: str) -> None:
        """Replace a file at once, mode 0600. Raises BrokerError."""
        self.make()
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise self._unusable(error) from error

    def pid(self) -> int | None:
        """The process id the server wrote down, whether it still runs or not."""
        try:
            return int(self.pid_file.read_text("ascii"))
        except (OSError, ValueError):
            return None

    def socket(self) -> Path:
        """Where the unix socket is: here, or where the path would be too long, in private."""
        near = self.path / "server.sock"
        if len(os.fsencode(near)) <= _LONGEST_SOCKET_PATH:
            return near
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return self._private(Path(tempfile.gettempdir()) / f"cloche-{name}") / "server.sock"

    def _private(self, directory: Path) -> Path:
        """Others can write beside it, so it must be ours, and really a directory."""
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise BrokerError(
                f"{directory} is not private to this user",
                fault=BrokerFault.PERMISSION,
                why="the embedded broker's socket would lie there, as run_dir is too long a path",
                fix=f"remove {directory}, or choose a shorter run_dir, or set TMPDIR",
            )
        return directory

    def _unusable(self, error: OSError) -> BrokerError:
        return BrokerError(
            f"The embedded broker cannot keep its data in {self.path}",
            fault=BrokerFault.FULL if error.errno == errno.ENOSPC else BrokerFault.PERMISSION,
            why=str(error),
            fix="make it writable for this user, free disk space, or choose another run_dir",
        )


def configuration(
    *, directory: Path, pid_file: Path, socket: Path, port: int, password: str, fsync: str
) -> str:
    """The text of ``server.conf`` (Redis 6.2+, Valkey 7.2+)."""
    lines = {
        "daemonize": "no",
        "supervised": "no",
        "set-proc-title": "no",  # keeps the path of this file in `ps`: reclaim looks for it
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "port": str(port),
        "unixsocket": quoted(str(socket)),
        "unixsocketperm": "700",
        "requirepass": quoted(password),
        "timeout": "0",
        "tcp-keepalive": "60",
        "dir": quoted(str(directory)),
        "pidfile": quoted(str(pid_file)),
        "logfile": '""',
        "loglevel": "warning",  # what a launcher's one log should carry
        "appendonly": "yes",
        "appendfsync": fsync,
        "aof-load-truncated": "yes",
        "save": '""',
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
    }
    text = "".join(f"{key} {value}\n" for key, value in lines.items())
    return f"# Written by Cloche at each start; changes are lost.\n{text}"


def quoted(value: str) -> str:
    """A value in double quotes (sds.c ``sdssplitargs``)."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"a line break in {value!r}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
