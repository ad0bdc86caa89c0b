"""A Redis broker URL, read the way kombu reads it, and masked for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from kombu.utils.url import parse_url

from cloche.errors import BrokerError, BrokerFault

REDIS = "Redis or Valkey"
REDIS_SCHEMES = frozenset({"redis", "rediss", "redis+socket"})
#: What people write although kombu knows no such transport, and what it calls them.
_FOREIGN = {
    "unix": "redis+socket",
    "valkey": "redis",
    "valkeys": "rediss",
    "http": "redis",
    "https": "rediss",
    "tcp": "redis",
}
_ALTERNATES = re.compile(r";(?=[A-Za-z][\w+.-]*://)")
# Up to the last @, so that a badly quoted password is masked whole.
_USERINFO = re.compile(r"^((?:[\w+.-]+://)?[^:/@]*):.*@", re.DOTALL)
_BAD_PORT = "its port is no port number (in a password, write / as %2F, ? as %3F, # as %23)"
_SECRET_QUERY = re.compile(r"([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server is. ``path`` is its unix socket, else ``host`` and ``port`` hold."""

    masked: str
    product: str = REDIS
    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = None

    @property
    def place(self) -> str:
        """What to call the other end in a sentence."""
        return self.path or f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        return bool(self.path) or self.host in ("localhost", "127.0.0.1", "::1")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``redis.Redis``."""
        options: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
        }
        if self.path:
            return {**options, "unix_socket_path": self.path}
        options |= {"host": self.host, "port": self.port}
        if self.tls is not None:
            options |= {"ssl": True, **self.tls}
        return options


def alternates(url: str) -> list[str]:
    """The URLs of a failover list; kombu separates them with semicolons."""
    return [part for part in _ALTERNATES.split(url.strip()) if part]


def masked(url: str) -> str:
    """``url`` without its secrets."""
    parts = (_USERINFO.sub(r"\1:**@", part) for part in _ALTERNATES.split(url))
    return _SECRET_QUERY.sub(r"\1**", ";".join(parts))


def scheme_of(url: str) -> str:
    """The transport a URL names.

    Raises BrokerError (bad-url) where it names none, or one that kombu calls otherwise.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise _bad(url, "it has no scheme", f"write redis://{masked(url) or 'localhost:6379/0'}")
    if scheme in _FOREIGN:
        rest = masked(url).partition("://")[2]
        raise _bad(
            url,
            f"Celery knows no transport named {scheme!r}",
            f"write {_FOREIGN[scheme]}://{rest}",
        )
    return scheme


def parse_address(url: str) -> Address:
    """Read a ``redis://``, ``rediss://`` or ``redis+socket://`` URL.

    Raises BrokerError (bad-url).
    """
    try:
        return _socket_address(url) if scheme_of(url) == "redis+socket" else _tcp_address(url)
    except (ValueError, KeyError) as error:
        # urllib's words on a bad port quote it, and it may be half a password.
        why = _BAD_PORT if "ort" in str(error) else str(error)
        raise _bad(url, why, "write redis://[user:password@]host:port/database-number") from error


def _tcp_address(url: str) -> Address:
    parts = parse_url(url)
    tls = parts.get("ssl")
    if parts["transport"] == "rediss":
        # kombu falls back to no verification at all; a certificate is checked here unless
        # the URL says ssl_cert_reqs=none.
        tls = {"ssl_cert_reqs": "required", **(tls or {})}
    return Address(
        masked=masked(url),
        host=parts["hostname"] or "127.0.0.1",
        port=parts["port"] or 6379,
        db=_database(parts["virtual_host"]),
        username=parts["userid"],
        password=parts["password"],
        tls=tls,
    )


def _socket_address(url: str) -> Address:
    parts = urlsplit(url.removeprefix("redis+"))
    if not parts.path.strip("/"):
        raise ValueError("it names no socket file")
    query = dict(parse_qsl(parts.query))
    return Address(
        masked=masked(url),
        path=unquote(parts.path),
        db=_database(query.get("virtual_host")),
        username=unquote(parts.username or "") or None,
        password=unquote(parts.password or "") or None,
    )


def _database(name: str | None) -> int:
    name = (name or "0").strip("/") or "0"
    try:
        return int(name)
    except ValueError:
        raise ValueError(f"the database is a number, not {name!r}") from None


def _bad(url: str, why: str, fix: str) -> BrokerError:
    return BrokerError(
        f"{masked(url)!r} is not a broker URL", fault=BrokerFault.BAD_URL, why=why, fix=fix
    )
