"""Whether a broker can be used, found out by using it: connect, ask, write."""

from __future__ import annotations

import socket
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import redis
from kombu.connection import Connection
from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES
from redis.backoff import NoBackoff
from redis.retry import Retry

from cloche.backoff import Backoff
from cloche.broker.connection import faults
from cloche.broker.connection.address import (
    REDIS_SCHEMES,
    Address,
    alternates,
    parse_address,
    scheme_of,
)
from cloche.errors import BrokerError, BrokerFault
from cloche.records import BrokerFacts
from cloche.settings import mask_url

#: AMQP 0-9-1 reply codes, https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants
_ACCESS_REFUSED, _NOT_ALLOWED = 403, 530

_PRODUCTS = {"amqp": "rabbitmq"}

_PERSISTENCE: dict[str, tuple[bool | None, str]] = {
    "memory": (False, "none: messages live inside one process"),
    "filesystem": (True, "files"),
    "amqp": (None, "as its queues are declared (durable by default)"),
}

_REDIS_REPLIES = (b"+PONG", b"-NOAUTH", b"-DENIED", b"-LOADING", b"-NOPERM", b"-ERR")

__all__ = ["client_of", "loading_percent", "probe", "probe_with_retries", "reach"]

#: Celery's ACL users may write ``_kombu*``, or Celery would not work.
_PROBE_KEY = "_kombu.cloche-probe."


def probe_foreign(url: str, connect_timeout: float, socket_timeout: float) -> BrokerFacts:
    """Connect once. Times are in seconds. Raises BrokerError."""
    begun = time.perf_counter()
    connection = _connection(url, connect_timeout, socket_timeout)
    try:
        # 0 tries again never; None would try for ever (kombu.utils.functional).
        connection.ensure_connection(max_retries=0)
        return _facts(url, connection, time.perf_counter() - begun)
    # The drivers (py-amqp, boto3, …) share no base class of errors.
    except Exception as error:
        raise _explained(error, url, connection) from error
    finally:
        connection.release()


def _connection(url: str, connect_timeout: float, socket_timeout: float) -> Any:
    amqp = url.startswith(("amqp", "pyamqp"))
    # py-amqp waits for ever for a server that accepts and says nothing, unless told otherwise.
    options = {"read_timeout": socket_timeout, "write_timeout": socket_timeout} if amqp else {}
    try:
        connection: Any = Connection(
            url, connect_timeout=connect_timeout, transport_options=options
        )
        _ = connection.transport_cls, connection.transport
    except (KeyError, ValueError, KombuError) as error:
        raise BrokerError(
            f"{mask_url(url)!r} is not a broker URL",
            fault=BrokerFault.BAD_URL,
            why=str(error.args[0] if error.args else error),
            fix=f"use one of: {', '.join(sorted({name.lower() for name in TRANSPORT_ALIASES}))}",
        ) from error
    except ImportError as error:
        name = url.partition("://")[0].partition("+")[0]
        raise BrokerError(
            f"The library for {name} brokers is not installed",
            fault=BrokerFault.OTHER,
            why=str(error),
            fix=f"pip install 'kombu[{name}]'",
        ) from error
    return connection


def _facts(url: str, connection: Any, took: float) -> BrokerFacts:
    kind = str(connection.transport.driver_type)
    properties = getattr(connection.connection, "server_properties", None) or {}
    product = str(properties.get("product", kind)).lower()
    persistent, persistence = _PERSISTENCE.get(kind, (None, "unknown"))
    return BrokerFacts(
        url=mask_url(url),
        server=f"{product} {properties.get('version', '')}".strip(),
        persistent=persistent,
        persistence=persistence,
        policy="",
        role="",
        took=took,
    )


def _explained(error: Exception, url: str, connection: Any) -> BrokerError:
    at = Address(
        masked=mask_url(url),
        product=_PRODUCTS.get(connection.transport.driver_type, connection.transport.driver_type),
        host=connection.hostname or "localhost",
        port=connection.port or connection.transport.default_port or 0,
    )
    code = getattr(error, "reply_code", None) or getattr(error, "code", None)
    if code == _ACCESS_REFUSED:
        return BrokerError(
            f"The broker at {at.place} refused the user or password",
            fault=BrokerFault.AUTH,
            why=str(error),
            fix=f"correct user and password in the broker URL: amqp://USER:PASSWORD@{at.place}/",
        )
    if code == _NOT_ALLOWED:
        return BrokerError(
            f"The broker at {at.place} does not let this user into its virtual host",
            fault=BrokerFault.WRONG_DB,
            why=str(error),
            fix="name an existing one at the end of the broker URL; rabbitmqctl list_vhosts",
        )
    found = faults.explain(error, at)
    # Redis waits for the end of a line that AMQP's greeting does not have.
    if found.fault is BrokerFault.TIMEOUT and speaks_plain_redis(at.host, at.port, 1):
        return BrokerError(
            f"What listens at {at.place} is a Redis server and no {at.product} server",
            fault=BrokerFault.NOT_A_BROKER,
            why="it answers a Redis PING",
            fix=f"write redis://{at.place}/0",
        )
    return found


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


def probe(
    url: str, *, connect_timeout: float = 5, socket_timeout: float = 5, key_prefix: str = ""
) -> BrokerFacts:
    """Use the broker once: log in, select the database, read its facts, write and delete a key.

    Times are in seconds. Of a failover list (``url;url``) the first usable broker counts.
    ``key_prefix`` is the transport option ``global_keyprefix``. Raises BrokerError.
    """
    urls = alternates(url) or [url]
    for number, one in enumerate(urls, start=1):
        try:
            return _probe_one(one, connect_timeout, socket_timeout, key_prefix)
        except BrokerError:
            if number == len(urls):
                raise
    raise AssertionError("unreachable: the last broker returns or raises")


def reach(connection: Connection, timeout: float = 3.0) -> Connection:
    """Connect, unless it is connected: one attempt. Raises the connection's own errors.

    kombu's default is to try for ever.
    """
    connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
    return connection


def probe_with_retries(
    url: str,
    *,
    tries: int,
    backoff: Backoff,
    on_failure: Callable[[int, BrokerError, float], None],
    connect_timeout: float = 5,
    socket_timeout: float = 5,
    sleep: Callable[[float], None] = time.sleep,
) -> BrokerFacts:
    """``probe``, again and again while that may help.

    ``on_failure(attempt, error, delay)`` is called before each wait of ``delay`` seconds.
    The last error is raised, and at once one that no retry can mend.
    """
    attempt = 1
    while True:
        try:
            return probe(url, connect_timeout=connect_timeout, socket_timeout=socket_timeout)
        except BrokerError as error:
            if attempt >= tries or error.fault in faults.FINAL:
                raise
            delay = backoff.delay(attempt)
            on_failure(attempt, error, delay)
        sleep(delay)
        attempt += 1


def client_of(at: Address, *, connect_timeout: float = 5, socket_timeout: float = 5) -> redis.Redis:
    """A Redis client that tries everything once; the caller closes it."""
    return redis.Redis(
        **at.options(),
        socket_connect_timeout=connect_timeout,
        socket_timeout=socket_timeout,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


def loading_percent(client: redis.Redis) -> str:
    """How far a server is with loading its data, as a phrase; empty if it does not say."""
    try:
        info: Mapping[str, Any] = client.info("persistence")
    except redis.RedisError:
        return ""
    if not info.get("loading"):
        return ""
    share = min(100.0, float(info.get("loading_loaded_perc", 0)))
    return f"{share:.0f} % read, about {info.get('loading_eta_seconds', '?')} s left"


#: Our transport's URLs name the same servers as kombu's own.
_OURS = {"cloche+socket://": "redis+socket://", "cloche+unix://": "redis+socket://"}
_OURS |= {f"cloche+{scheme}://": f"{scheme}://" for scheme in ("redis", "rediss")}


def _stock(url: str) -> str:
    for ours, theirs in _OURS.items():
        if url.startswith(ours):
            return theirs + url.removeprefix(ours)
    return url


def _probe_one(url: str, connect: float, read: float, prefix: str) -> BrokerFacts:
    url = _stock(url)
    if scheme_of(url) not in REDIS_SCHEMES:
        return probe_foreign(url, connect, read)
    at = parse_address(url)
    begun = time.perf_counter()
    try:
        with client_of(at, connect_timeout=connect, socket_timeout=read) as client:
            return _examine(client, at, prefix, begun)
    except (redis.RedisError, OSError) as error:
        raise _diagnose(error, at, connect, read) from error


def _examine(client: redis.Redis, at: Address, prefix: str, begun: float) -> BrokerFacts:
    client.ping()
    info = _info(client)
    if str(info.get("cluster_enabled", "0")) == "1":
        raise faults.cluster(at)
    if info.get("role") == "slave":
        raise faults.replica(at)
    key = f"{prefix}{_PROBE_KEY}{uuid.uuid4().hex}"
    client.set(key, "1", ex=10)
    client.delete(key)
    persistent, persistence = _persistence(client, info)
    return BrokerFacts(
        url=at.masked,
        server=_server(info),
        persistent=persistent,
        persistence=persistence,
        policy=str(info.get("maxmemory_policy", "")),
        role=str(info.get("role", "")),
        took=time.perf_counter() - begun,
    )


def _info(client: redis.Redis) -> Mapping[str, Any]:
    try:
        info: Mapping[str, Any] = client.info()
    except redis.exceptions.NoPermissionError:
        return {}  # Celery does without INFO, so an ACL without it is no fault.
    return info


def _server(info: Mapping[str, Any]) -> str:
    """Product and version; Valkey's ``redis_version`` is only what it is compatible with."""
    for product in ("valkey", "dragonfly", "redis"):
        version = info.get(f"{product}_version")
        if version:
            return f"{product} {str(version).removeprefix('df-v')}"
    return "redis"


def _persistence(client: redis.Redis, info: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether acknowledged messages survive a stop of the server, and how."""
    if info.get("aof_enabled"):
        return True, f"AOF {_config(client, 'appendfsync') or ''}".strip()
    snapshots = _config(client, "save")
    if snapshots is None:
        return None, "unknown"
    return (True, "RDB snapshots") if snapshots else (False, "none")


def _config(client: redis.Redis, name: str) -> str | None:
    try:
        found: Mapping[str | None, str | None] = client.config_get(name)
    except redis.ResponseError:  # denied by an ACL, or renamed away by a hosting company
        return None
    return found.get(name)


def _diagnose(error: Exception, at: Address, connect: float, read: float) -> BrokerError:
    found = faults.explain(error, at)
    if found.fault is BrokerFault.LOADING:
        with client_of(at, connect_timeout=connect, socket_timeout=read) as client:
            found.why = loading_percent(client) or found.why
        return found
    if at.path or found.fault not in _PERHAPS_TLS:
        return found
    if at.tls is None and found.fault is not BrokerFault.TIMEOUT:
        return faults.tls_wanted(at) if speaks_tls(at.host, at.port, connect) else found
    if at.tls is not None and "certificate" not in found.what:
        return faults.tls_refused(at) if speaks_plain_redis(at.host, at.port, connect) else found
    return found


#: How a client that speaks TLS to a plain port, or the other way round, sees it.
_PERHAPS_TLS = frozenset(
    {BrokerFault.TLS, BrokerFault.NOT_A_BROKER, BrokerFault.TIMEOUT, BrokerFault.OTHER}
)
