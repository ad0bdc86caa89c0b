"""The servers and the ways to reach them that the transport is tested on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cloche.broker.connection.commands import send
from cloche.broker.embedded.server import bundled_server
from cloche.testing import BrokerProcess, free_port
from tests.integration.transport.harness import ROOT

#: Name -> its program, None where it is not installed.
PROGRAMS: dict[str, Path | None] = {
    "valkey-9": bundled_server(),
    "redis-7": Path(found) if (found := shutil.which("redis-server")) else None,
}
PASSWORD = "p@ss/w:rd"  # characters that must be quoted in a URL


def program(name: str) -> Path:
    """The server's program; the test is skipped where there is none, in CI it fails."""
    path = PROGRAMS[name]
    if path is None:
        why = f"{name}: no program (apt-get install redis-server, or: sh tools/test-servers.sh)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return path


@dataclass(frozen=True)
class Reached:
    """A running server and how clients reach it: broker URL, result URL, transport options."""

    server: BrokerProcess
    url: str
    results: str
    options: dict[str, Any] = field(default_factory=dict)


def documented_rules(example: str) -> str:
    """The rules of the user ``example`` in docs/servers.md, without its password."""
    text = (ROOT / "docs" / "servers.md").read_text().replace("\\\n", " ")
    found = re.search(rf"ACL SETUSER {example} on >\S+ (.+)", text)
    assert found, f"docs/servers.md has no ACL SETUSER {example}"
    return " ".join(found[1].split())


@contextmanager
def _tcp(path: Path) -> Iterator[Reached]:
    with BrokerProcess(program=path) as server:
        at = f"127.0.0.1:{server.port}/0"
        yield Reached(server, f"cloche+redis://{at}", f"cloche+redis://{at}")


@contextmanager
def _socket(path: Path) -> Iterator[Reached]:
    with BrokerProcess(program=path) as server:
        at = server.unix_url.removeprefix("redis+")
        yield Reached(server, f"cloche+{at}", f"cloche+{at}")


@contextmanager
def _password(path: Path) -> Iterator[Reached]:
    with BrokerProcess(program=path, password=PASSWORD) as server:
        url = server.url.replace("redis://", "cloche+redis://")
        yield Reached(server, url, url)


@contextmanager
def _user(path: Path, example: str, options: dict[str, Any]) -> Iterator[Reached]:
    with BrokerProcess(program=path) as server:
        with server.client() as client:
            rules = documented_rules(example).split()
            send(client, "ACL", "SETUSER", example, "on", f">{PASSWORD}", *rules)
        at = f"{example}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"
        yield Reached(server, f"cloche+redis://{at}", f"cloche+redis://{at}", options)


def _user_of_the_database(path: Path) -> contextlib.AbstractContextManager[Reached]:
    return _user(path, "tasks", {})


def _user_of_a_prefix(path: Path) -> contextlib.AbstractContextManager[Reached]:
    return _user(path, "shop", {"global_keyprefix": "shop:"})


@contextmanager
def tls_server(path: Path, folder: Path, *, clients: str = "no") -> Iterator[tuple[Any, int]]:
    """A server with a certificate for 127.0.0.1; (server, its TLS port). ``clients``: whether
    they need a certificate.
    """
    port = free_port()
    config: dict[str, str | int] = {
        "tls-port": port,
        "tls-cert-file": f"{folder}/server.crt",
        "tls-key-file": f"{folder}/server.key",
        "tls-ca-cert-file": f"{folder}/ca.crt",
        "tls-auth-clients": clients,
    }
    with BrokerProcess(program=path, config=config) as server:
        yield server, port


@contextmanager
def _tls(path: Path) -> Iterator[Reached]:
    with BrokerProcess() as folder_owner, contextlib.ExitStack() as stack:
        folder = certificates(folder_owner.directory)
        server, port = stack.enter_context(tls_server(path, folder))
        url = f"cloche+rediss://127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.crt"
        yield Reached(server, url, url)


#: How a server is reached -> what makes such a server.
CONNECTIONS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Reached]]] = {
    "tcp": _tcp,
    "socket": _socket,
    "password": _password,
    "acl": _user_of_the_database,
    "acl-prefix": _user_of_a_prefix,
    "tls": _tls,
}

#: What is tested; the bundled Valkey is built without TLS.
COMBINATIONS = [
    (server, connection)
    for server in PROGRAMS
    for connection in CONNECTIONS
    if (server, connection) != ("valkey-9", "tls")
]


def certificates(folder: Path) -> Path:
    """A private authority (ca.crt) and what it signed: server (for 127.0.0.1), other (for
    another host), client; each with its key. Returns ``folder``.
    """
    _openssl(folder, "req", "-x509", "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.crt")
    names = {"server": "IP:127.0.0.1", "other": "DNS:elsewhere.example", "client": "DNS:client"}
    for name, alternative in names.items():
        _openssl(
            folder,
            *("req", "-x509", "-CA", "ca.crt", "-CAkey", "ca.key", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={alternative}", "-addext", "basicConstraints=CA:FALSE"),
            *("-keyout", f"{name}.key", "-out", f"{name}.crt"),
        )
    return folder


def _openssl(folder: Path, *words: str) -> None:
    command = ["openssl", *words, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
