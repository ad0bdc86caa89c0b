"""Where a ``cloche+…://`` URL leads, in redis-py's terms.

kombu splits ``cloche+redis://host`` at the ``+`` and leaves ``redis://host`` in
``Connection.hostname`` for the transport to parse (kombu/connection.py); an alternate URL it
switches to arrives parsed, with ``cloche+redis`` as the transport's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kombu.utils.url import url_to_parts

from cloche.broker.connection import address
from cloche.broker.connection.address import SOCKET_SCHEMES
from cloche.errors import BrokerError, BrokerFault

#: What may follow ``cloche+``.
SCHEMES = frozenset({"redis", "rediss", "sentinel", "sentinels", "socket", "unix"})

#: Options of a connection that the transport has no use for: it reads bytes.
_NOT_OURS = frozenset({"decode_responses", "encoding", "encoding_errors"})


def scheme_of(client: Any) -> str:
    """What stands behind ``cloche+`` in the URL of a kombu connection; "redis" by default."""
    hostname = client.hostname or ""
    if "://" in hostname:
        return str(hostname.partition("://")[0])
    name = client.transport_cls if isinstance(client.transport_cls, str) else ""
    return name.partition("+")[2] or "redis"


def check(client: Any) -> None:
    """Raise BrokerError for a URL that cannot be used: its scheme, its form, its options."""
    scheme = scheme_of(client)
    if scheme not in SCHEMES:
        raise BrokerError(
            f"cloche+{scheme}:// is no address this transport can use.",
            fault=BrokerFault.BAD_URL,
            fix="Use one of " + ", ".join(f"cloche+{known}://" for known in sorted(SCHEMES)) + ".",
        )
    for name in parameters(client):
        if name in _NOT_OURS:
            raise BrokerError(
                f"{name} is no option of a broker's URL",
                fault=BrokerFault.BAD_URL,
                why="the transport reads what the server sends as bytes",
                fix="give brokers and results (result_backend) a URL each",
            )
    if len(client.alt) > 1:
        _check_alternates(client.alt)


def _check_alternates(urls: list[Any]) -> None:
    """kombu takes no other options than these in a list of URLs, and says so in a fail-over."""
    for url in map(str, urls):
        if "://" not in url:
            continue
        address.parameters(url)
        query = parse_qsl(urlsplit(url).query)
        wrong = [name for name, _ in query if not name.startswith("ssl_")]
        if wrong:
            raise BrokerError(
                f"A list of broker URLs cannot have the option {wrong[0]!r} in one of them",
                fault=BrokerFault.BAD_URL,
                why="kombu switches between them and knows host, login, database and ssl_… only",
                fix="set it in broker_transport_options (virtual_host: as the path, /1)",
            )


def uses_tls(client: Any) -> bool:
    """Whether the URL asks for TLS."""
    return scheme_of(client) in {"rediss", "sentinels"}


def uses_socket(client: Any) -> bool:
    """Whether the URL names a unix socket."""
    return scheme_of(client) in SOCKET_SCHEMES


def parameters(client: Any) -> dict[str, Any]:
    """Connection parameters the URL gives; empty where kombu parsed it itself."""
    hostname = client.hostname or ""
    if "://" in hostname:
        return address.parameters(hostname.partition(";")[0])
    if uses_socket(client):
        return {"path": "/" + (client.virtual_host or "").lstrip("/"), "db": 0}
    return {}


def set_beside(client: Any) -> dict[str, Any]:
    """What stands beside the URL (``broker_user``, ``broker_password``, ``broker_port``), and
    counts where the URL does not say it. kombu takes it from a URL that it splits itself.
    """
    given = {"username": client.userid, "password": client.password, "port": client.port}
    return {name: value for name, value in given.items() if value}


def without_password(info: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Connection.info`` tells, with the address in its parts as kombu has it for ``redis://``.

    The URL behind the ``+`` would tell the password, which Celery takes out of the other fields.
    """
    prefix, _, url = str(info.get("hostname")).partition("+")
    if "://" not in url or "://" in prefix:
        return dict(info)
    parts = url_to_parts(url.partition(";")[0])
    return {
        **info,
        "hostname": parts.hostname or "localhost",
        "port": parts.port or info.get("port"),
        "userid": parts.username or info.get("userid"),
        "virtual_host": parts.path or info.get("virtual_host") or "/",
    }


def sentinels(client: Any, default_port: int) -> list[tuple[str, int]]:
    """The addresses of the sentinels, however the URL lists them."""
    urls = list(client.alt) or [client.hostname or "127.0.0.1"]
    found = []
    for url in map(str, urls):
        if "://" in url:
            given = address.parameters(url)
            found.append((given["host"], given.get("port", default_port)))
        else:
            found.append((url, client.port or default_port))
    return found
