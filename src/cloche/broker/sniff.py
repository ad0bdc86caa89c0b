"""What listens on a port, found out by listening to it: TLS, or a server that talks Redis."""

from __future__ import annotations

import socket
import ssl

_REDIS_REPLIES = (b"+PONG", b"-NOAUTH", b"-DENIED", b"-LOADING", b"-NOPERM", b"-ERR")


def speaks_tls(host: str, port: int, timeout: float) -> bool:
    """Whether the server answers a TLS handshake; its certificate does not matter here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        # An alert is TLS spoken, if only to say no (a client certificate is wanted).
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def speaks_plain_redis(host: str, port: int, timeout: float) -> bool:
    """Whether the server answers an inline PING as Redis does, without TLS."""
    try:
        with socket.create_connection((host, port), timeout) as link:
            link.settimeout(timeout)
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith(_REDIS_REPLIES)
    except OSError:
        return False
