"""The configuration file of an embedded broker. Every line says why in decision 0003."""

from __future__ import annotations

from pathlib import Path


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
