"""Where a ``cloche+…://`` URL leads, in redis-py's terms.

kombu splits ``cloche+redis://host`` at the ``+`` and leaves ``redis://host`` in
``Connection.hostname`` for the transport to parse (kombu/connection.py); an alternate URL it
switches to arrives parsed, with ``cloche+redis`` as the transport's name.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from kombu.utils.url import url_to_parts

from cloche.errors import BrokerError, BrokerFault

#: What may follow ``cloche+``.
SCHEMES = frozenset({"redis", "rediss", "sentinel", "sentinels", "socket", "unix"})

#: Options of a URL's query that redis-py takes, each with its type.
_QUERY = {
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "health_check_interval": float,
    "max_connections": int,
    "client_name": str,
}


def scheme_of(client: Any) -> str:
    """What stands behind ``cloche+`` in the URL of a kombu connection; "redis" by default."""
    hostname = client.hostname or ""
    if "://" in hostname:
        return urlsplit(hostname.partition(";")[0]).scheme
    name = client.transport_cls if isinstance(client.transport_cls, str) else ""
    return name.partition("+")[2] or "redis"


def check(client: Any) -> None:
    """Raise BrokerError if the URL's scheme is not one of SCHEMES."""
    scheme = scheme_of(client)
    if scheme not in SCHEMES:
        raise BrokerError(
            f"cloche+{scheme}:// is no address this transport can use.",
            fault=BrokerFault.BAD_URL,
            fix="Use one of " + ", ".join(f"cloche+{known}://" for known in sorted(SCHEMES)) + ".",
        )


def uses_tls(client: Any) -> bool:
    """Whether the URL asks for TLS."""
    return scheme_of(client) in {"rediss", "sentinels"}


def parameters(client: Any) -> dict[str, Any]:
    """Connection parameters the URL gives: host, port, db, user, password, options.

    Empty where kombu parsed the URL itself or it names a unix socket, which kombu's Redis
    transport understands.
    """
    hostname = client.hostname or ""
    if "://" not in hostname or scheme_of(client) in {"socket", "unix"}:
        return {}
    parts = url_to_parts(hostname.partition(";")[0])
    found: dict[str, Any] = {"host": parts.hostname or "127.0.0.1"}
    if parts.port:
        found["port"] = parts.port
    path = (parts.path or parts.query.get("virtual_host", "")).strip("/")
    if path:
        found["db"] = int(path)
    for name, value in parts.query.items():
        if name.startswith("ssl_"):
            found[name] = value.lower() != "false" if name == "ssl_check_hostname" else value
        elif name in _QUERY:
            found[name] = _QUERY[name](value)
    return found


def sentinels(client: Any, default_port: int) -> list[tuple[str, int]]:
    """The addresses of the sentinels, however the URL lists them."""
    urls = list(client.alt) or [client.hostname or "127.0.0.1"]
    found = []
    for url in urls:
        parts = url_to_parts(str(url).removeprefix("cloche+")) if "://" in str(url) else None
        if parts is None:
            found.append((str(url), client.port or default_port))
        else:
            found.append((parts.hostname or "127.0.0.1", parts.port or default_port))
    return found
