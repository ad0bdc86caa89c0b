"""Listeners that are no proper brokers."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

#: Talks to one client on an accepted connection.
Talk = Callable[[socket.socket], None]


@contextmanager
def _listening(talk: Talk) -> Iterator[int]:
    """A listener that hands every connection to ``talk``; yields its port."""
    door = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                link, _ = door.accept()
            except OSError:
                return
            with link:
                link.settimeout(5)
                try:
                    talk(link)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(door.getsockname()[1])
    finally:
        stop.set()
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join(10)


@pytest.fixture
def listener() -> Iterator[Callable[[Talk], int]]:
    """Starts a listener with the given conversation and returns its port."""
    with ExitStack() as stack:
        yield lambda talk: stack.enter_context(_listening(talk))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one PEM file."""
    directory = tmp_path_factory.mktemp("tls")
    key, pem = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(pem)),
        ],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_text(pem.read_text() + key.read_text())
    return both


@pytest.fixture
def tls_proxy(certificate: Path, listener: Callable[[Talk], int]) -> Callable[[int], int]:
    """Puts TLS in front of a plain port of a real server; returns the TLS port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def start(behind: int) -> int:
        def talk(link: socket.socket) -> None:
            with (
                context.wrap_socket(link, server_side=True) as client,
                socket.create_connection(("127.0.0.1", behind), 5) as server,
            ):
                client.settimeout(5)
                while asked := client.recv(65536):
                    server.sendall(asked)
                    client.sendall(server.recv(65536))

        return listener(talk)

    return start
