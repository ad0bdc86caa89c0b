"""Whether a broker can be used, found out by using it: connect, ask, write."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cloche.backoff import Backoff
from cloche.broker import faults
from cloche.broker.address import REDIS_SCHEMES, Address, alternates, parse_address, scheme_of
from cloche.broker.facts import BrokerFacts
from cloche.broker.foreign import probe_foreign
from cloche.broker.sniff import speaks_plain_redis, speaks_tls
from cloche.errors import BrokerError, BrokerFault

__all__ = ["BrokerFacts", "client_of", "loading_percent", "probe", "probe_with_retries"]

#: Celery's ACL users may write ``_kombu*``, or Celery would not work.
_PROBE_KEY = "_kombu.cloche-probe."


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
