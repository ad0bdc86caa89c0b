"""A Redis broker URL, read the way kombu reads it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from kombu.utils.imports import symbol_by_name
from redis.connection import URL_QUERY_ARGUMENT_PARSERS

from cloche.errors import BrokerError, BrokerFault
from cloche.settings import hide_passwords, mask_url

REDIS = "Redis or Valkey"
#: Schemes that name a unix socket: kombu's, what is left of it behind our own, and redis-py's.
SOCKET_SCHEMES = frozenset({"redis+socket", "socket", "unix"})
REDIS_SCHEMES = frozenset({"redis", "rediss", *SOCKET_SCHEMES})
#: What people write although kombu knows no such transport, and what it calls them.
_FOREIGN = {
    "valkey": "redis",
    "valkeys": "rediss",
    "http": "redis",
    "https": "rediss",
    "tcp": "redis",
}
_ALTERNATES = re.compile(r";(?=[A-Za-z][\w+.-]*://)")
_BAD_PORT = "its port is no port number (in a password, write / as %2F, ? as %3F, # as %23)"


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
    credential_provider: Any = field(default=None, repr=False)

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
            "credential_provider": self.credential_provider,
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


def scheme_of(url: str) -> str:
    """The transport a URL names.

    Raises BrokerError (bad-url) where it names none, or one that kombu calls otherwise.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise _bad(url, "it has no scheme", f"write redis://{mask_url(url) or 'localhost:6379/0'}")
    if scheme in _FOREIGN:
        rest = mask_url(url).partition("://")[2]
        raise _bad(
            url,
            f"Celery knows no transport named {scheme!r}",
            f"write {_FOREIGN[scheme]}://{rest}",
        )
    return scheme


def parse_address(url: str) -> Address:
    """Read a ``redis://``, ``rediss://``, ``redis+socket://`` or ``unix://`` URL.

    Raises BrokerError (bad-url).
    """
    scheme = scheme_of(url)
    found = parameters(url)
    tls = None
    if scheme == "rediss":
        # kombu falls back to no verification at all; a certificate is checked here unless
        # the URL says ssl_cert_reqs=none.
        given = {name: value for name, value in found.items() if name.startswith("ssl_")}
        tls = {"ssl_cert_reqs": "required", **given}
    return Address(
        masked=mask_url(url),
        host=found.get("host", "127.0.0.1"),
        port=found.get("port", 6379),
        path=found.get("path", ""),
        db=found.get("db", 0),
        username=found.get("username"),
        password=found.get("password"),
        credential_provider=found.get("credential_provider"),
        tls=tls,
    )


def parameters(url: str) -> dict[str, Any]:
    """What ``url`` says of a connection to Redis, in redis-py's words and types.

    ``host`` and ``port``, or ``path``; ``db``; ``username`` and ``password``; what its query
    names, of which ``db`` stands before the path (redis-py) and ``virtual_host`` behind it
    (kombu). Raises BrokerError (bad-url), which tells nothing of a password.
    """
    try:
        return _parameters(url)
    except (ValueError, KeyError) as error:
        # urllib's words on a bad port quote it, and it may be half a password.
        why = _BAD_PORT if "ort" in str(error) else str(error)
        raise _bad(url, why, "write redis://[user:password@]host:port/database-number") from None


def _parameters(url: str) -> dict[str, Any]:
    scheme, _, rest = url.removeprefix("cloche+").partition("://")
    parts = urlsplit(f"http://{rest}")  # as kombu does: schemes differ in how they are split
    found = {name: _value(name, value) for name, value in parse_qsl(parts.query)}
    names: tuple[Any, ...] = (found.pop("db", None), found.pop("virtual_host", None))
    if scheme in SOCKET_SCHEMES:
        if not parts.path.strip("/"):
            raise ValueError("it names no socket file")
        where: dict[str, Any] = {"path": unquote(parts.path)}
    else:
        names = (names[0], unquote(parts.path).strip("/"), names[1])
        where = {"host": unquote(parts.hostname or "") or "127.0.0.1", "port": parts.port}
    login = {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    given = {name: value for name, value in {**where, **login}.items() if value}
    if "credential_provider" in found:
        given = where
    database = next((name for name in names if name), None)
    return {**found, **given, **({} if database is None else {"db": _database(str(database))})}


def _value(name: str, text: str) -> Any:
    """An option of a URL's query as redis-py takes it. Raises ValueError."""
    if name not in _OPTIONS:
        raise ValueError(f"there is no option {name!r} of a connection")
    try:
        return _OPTIONS[name](text)
    except (ValueError, KeyError, ImportError, AttributeError):
        raise ValueError(f"the option {name} cannot be {hide_passwords(text)!r}") from None


def fitting(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters of a pool those that its kind of connection takes, with the values it
    takes, wherever they were set: in a URL, in options, in ``broker_use_ssl``.
    """
    found = {name: value for name, value in parameters.items() if name != "virtual_host"}
    if "path" in found:
        for name in _OF_TCP & found.keys():
            del found[name]
    if found.get("credential_provider") is not None:
        for name in ("username", "password"):  # redis-py refuses both; kombu and Celery do this
            found.pop(name, None)
    if "ssl_cert_reqs" in found:
        found["ssl_cert_reqs"] = certificate_requirement(found["ssl_cert_reqs"])
    return found


#: What a unix socket's connection knows nothing of (redis.UnixDomainSocketConnection).
_OF_TCP = frozenset({"host", "port", "socket_keepalive", "socket_keepalive_options"})


def certificate_requirement(value: Any) -> Any:
    """``none``, ``CERT_NONE``, ``ssl.CERT_NONE``, ``0``: what redis-py and Celery call so, in any
    case, as ``ssl`` has it. Other types stay. Raises KeyError for other words.
    """
    if not isinstance(value, str):
        return value
    word = value.rpartition(".")[2].upper().removeprefix("CERT_")
    return _REQUIREMENTS[word]


_REQUIREMENTS = {
    **dict.fromkeys(("NONE", "0"), ssl.CERT_NONE),
    **dict.fromkeys(("OPTIONAL", "1"), ssl.CERT_OPTIONAL),
    **dict.fromkeys(("REQUIRED", "2"), ssl.CERT_REQUIRED),
}


def _tls_version(text: str) -> ssl.TLSVersion:
    """``771``, ``TLSv1.2``, ``TLSv1_2``, ``TLSVersion.TLSv1_2``."""
    if text.isdigit():
        return ssl.TLSVersion(int(text))
    return ssl.TLSVersion[text.removeprefix("TLSVersion.").replace(".", "_")]


def _provider(name: str) -> Any:
    return symbol_by_name(name)()


#: Options that a URL may name (redis-py's, those of TLS, kombu's) and what reads each.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("virtual_host", "username", "password", "client_name", "encoding"), str),
    **dict.fromkeys(("master_name", "encoding_errors", "decode_responses"), str),
    **cast("dict[str, Callable[[str], Any]]", URL_QUERY_ARGUMENT_PARSERS),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path"), str),
    **dict.fromkeys(("ssl_ca_data", "ssl_password", "ssl_ciphers"), str),
    "health_check_interval": float,
    "ssl_cert_reqs": certificate_requirement,
    "ssl_min_version": _tls_version,
    "credential_provider": _provider,
}
del _OPTIONS["timeout"]  # of another kind of pool


def _database(name: str) -> int:
    name = name.strip("/") or "0"
    try:
        return int(name)
    except ValueError:
        raise ValueError(f"the database is a number, not {name!r}") from None


def _bad(url: str, why: str, fix: str) -> BrokerError:
    return BrokerError(
        f"{mask_url(url)!r} is not a broker URL", fault=BrokerFault.BAD_URL, why=why, fix=fix
    )
